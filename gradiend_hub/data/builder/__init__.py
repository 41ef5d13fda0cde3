"""From raw text to rows: words of the classes are found in texts, which are filtered, counted and divided into splits."""
