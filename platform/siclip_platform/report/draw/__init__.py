"""Tables and pictures of a report, for HTML, Markdown and PNG."""
