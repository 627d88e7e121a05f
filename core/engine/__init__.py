"""Everything that holds a tensor: imported by workers and headless users, never by `app/` or `pages/`."""
