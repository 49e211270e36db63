"""Results to the terminal, to one self-contained HTML page, and to markdown.

`document` says what each kind of result has to tell; `terminal` and `page` show any document.
"""
