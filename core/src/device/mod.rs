//! Devices: opened files and block devices with their limits.
