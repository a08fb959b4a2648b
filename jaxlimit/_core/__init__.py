"""The frame that every room stands on; it imports none of them."""
