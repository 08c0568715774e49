"""A server under many clients, some of which leave, stall or never finish what they send."""
