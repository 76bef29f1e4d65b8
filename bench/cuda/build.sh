#!/usr/bin/env bash
# Compiles a measuring program of this folder with the library's kernels into the working folder: bench/cuda/build.sh NAME.
# Needs nvcc and cuBLAS, where nvcc looks or in the folder CUBLAS (as the wheels lay it out: include, lib).
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cublas=()
if [ -n "${CUBLAS:-}" ]; then
  library=$(find "$CUBLAS/lib" -maxdepth 1 -name 'libcublas.so*' | sort | head -n 1)
  cublas=(-I "$CUBLAS/include" -Xlinker "$library" -Xlinker -rpath -Xlinker "$CUBLAS/lib")
else
  cublas=(-lcublas)
fi
sources=("$root/bench/cuda/$1.cu" "$root"/native/kernels/cuda/*.cu "$root"/native/kernels/cuda/{tile_codec,code_tiles,tiled_weights,tiled_codes,cublaslt}.cc
  "$root"/native/kernels/cuda/{device_survey,dense_products}.cc
  "$root"/native/core/{status,dtype,thread_pool}.cc)
objects=()
for source in "${sources[@]}"; do
  object=$work/$(basename "$source").o
  objects+=("$object")
  nvcc -O3 -std=c++20 -gencode arch=compute_90a,code=sm_90a -lineinfo -I "$root/native" -I "$root/bench/cuda" \
    ${CUBLAS:+-I "$CUBLAS/include"} -c "$source" -o "$object" &
done
wait
nvcc -gencode arch=compute_90a,code=sm_90a "${objects[@]}" "${cublas[@]}" -Xcompiler -pthread -o "$1"
