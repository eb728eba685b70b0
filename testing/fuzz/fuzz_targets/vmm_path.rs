#![no_main]

banger_fuzz::target!(vmm_path);
