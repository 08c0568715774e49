"""Which order of bytes in memory reads faster: of the cache, of the weights."""
