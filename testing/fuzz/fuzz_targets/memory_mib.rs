#![no_main]

banger_fuzz::target!(memory_mib);
