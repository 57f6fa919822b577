"""What nobody needs any more: who needs what, what making it again would cost, what takes how much space."""
