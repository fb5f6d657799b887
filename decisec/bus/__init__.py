"""The bus in production: who has which credentials, and the server's configuration made of it.

It promises: no secret is kept here or printed unasked; what the roles do not say is refused; a
configuration that the server would not take replaces none that it has.
"""
