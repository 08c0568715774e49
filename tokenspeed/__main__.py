"""python -m tokenspeed"""

from tokenspeed import process

process.run()
