"""How many nodes an elastic pool is to have: what clients see goes in, a number and its reason come out.

Pure. `values` has what goes in and comes out, `policy` the decision, `arrivals` the rate at which tasks come,
`spot` the split into dedicated and spot nodes. `wishes` has the documents by which clients agree, `formula`
the text that Azure Batch evaluates.

A client that may act on Batch does this every few seconds, and so does each of its peers:

1. It makes an `Observation` of the documents that all clients read, and of the pool.
2. It gives it to `policy.decide`, with the memory of the newest wish.
3. It writes a `Wish` of the decision, which ends by itself. `wishes.merge` makes one of all living wishes.
4. It adds agent tasks up to `MergedWish.agents`, and sets the text of `formula.scaling_formula`.

A client without rights on Batch does the first three. No client is the master: each may do the last step, any
may die, and what it asked for ends with its wish.
"""
