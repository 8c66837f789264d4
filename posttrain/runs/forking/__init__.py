"""Processes that are forked from one which has imported everything: many short runs start without seconds of importing each."""
