"""What makes a release trustworthy to others: signatures, and what is stated under them."""

AGAIN = "get the release again; if it stays so, ask the publisher"
