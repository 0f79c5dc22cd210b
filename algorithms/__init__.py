"""The methods: one file each on shared networks, noise and optimiser; `interface` is what a plug-in author imports."""
