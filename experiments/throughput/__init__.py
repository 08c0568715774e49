"""The engine under load: tokens a second, and how long a request waits."""
