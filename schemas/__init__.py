"""Every message, id, subject and unit that two rooms of decisec share.

Pure data: msgspec types whose constraints make decoding the validation, and the functions
that build and read their bytes. No I/O happens here, and nothing else of decisec is imported.
"""
