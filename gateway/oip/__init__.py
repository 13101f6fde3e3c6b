"""The Open Inference Protocol V2 over REST, sans-IO: bytes and values in, bytes and values out."""
