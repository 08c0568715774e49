"""How time is measured, and the read ceiling of a device."""
