"""The engine under load with a clock in the place of the device."""
