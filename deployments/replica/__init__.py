"""An engine replica, its runner and what watches over them."""
