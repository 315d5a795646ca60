"""What makes the pages of docs/: the site, the page of commands, the picture."""
