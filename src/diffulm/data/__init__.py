"""Text to blocks: `documents` reads text, `blocks` packs it into rows of ids, `stdlib` is text that every user has."""
