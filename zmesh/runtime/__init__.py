"""The deeds: sockets, memory, processes and clocks of this machine."""
