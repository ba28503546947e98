"""How fast this machine is: measured in pairs, side by side with named peers. `commands.bench` prints it."""
