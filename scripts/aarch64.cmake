# How CMake builds for AArch64 on another machine: with the cross compiler of Debian and Ubuntu
# (gcc-aarch64-linux-gnu). Used by build_wheel.py.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
