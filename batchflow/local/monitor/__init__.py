"""The local Logs Ingestion API: takes rows for the streams of a data collection rule."""
