"""A report of the tasks that a session ran: one page of HTML without scripts, to read after the fact."""
