"""Known vulnerabilities that keep an image from being released."""
