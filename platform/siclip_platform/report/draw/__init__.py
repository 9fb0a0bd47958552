"""Tables, plots and text blocks of a report, and their rendering as HTML, Markdown, PNG and CSV."""
