{
  "includes": ["native/sources.gypi"],
  "target_defaults": {
    "include_dirs": ["native"],
    "cflags!": ["-fno-exceptions"],
    "cflags_cc!": ["-fno-exceptions", "-fno-rtti", "-std=gnu++17", "-std=gnu++20"],
    "cflags_cc": ["-std=c++20", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-Wno-psabi",
      "-Wno-error=cast-function-type", "-fno-math-errno", "-fno-trapping-math", "-fPIC"]
  },
  "conditions": [
    ["target_arch=='x64'", {
      "targets": [
        {
          "target_name": "espalier_avx2",
          "type": "static_library",
          "sources": ["<@(avx2_sources)"],
          "cflags_cc": ["-mavx2", "-mfma", "-mf16c", "-mbmi2", "-mpopcnt"]
        },
        {
          "target_name": "espalier_avx512",
          "type": "static_library",
          "sources": ["<@(avx512_sources)"],
          "cflags_cc": ["-mavx2", "-mfma", "-mf16c", "-mbmi2", "-mpopcnt", "-mavx512f", "-mavx512bw", "-mavx512vl",
            "-mavx512dq", "-mavx512vbmi", "-mavx512vbmi2", "-mavx512vnni", "-mgfni", "-mprefer-vector-width=512"]
        }
      ]
    }],
    ["target_arch=='arm64'", {
      "targets": [
        {
          "target_name": "espalier_neon",
          "type": "static_library",
          "sources": ["<@(neon_sources)"],
          "cflags_cc": ["-march=armv8.2-a+dotprod", "-fno-schedule-insns"]
        }
      ]
    }]
  ],
  "targets": [
    {
      "target_name": "espalier",
      "conditions": [
        ["target_arch=='x64'", { "dependencies": ["espalier_avx2", "espalier_avx512"] }],
        ["target_arch=='arm64'", { "dependencies": ["espalier_neon"] }]
      ],
      "sources": ["<@(core_sources)", "<@(no_cuda_sources)", "<@(binding_sources)"],
      "cflags_cc": ["-isystem", "<!(node -p \"require('path').resolve(require('node-addon-api').include_dir)\")"],
      "defines": ["NAPI_VERSION=8", "NODE_ADDON_API_CPP_EXCEPTIONS", "NODE_ADDON_API_CPP_EXCEPTIONS_ALL",
        "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS"],
      "ldflags": ["-Wl,--version-script=<(module_root_dir)/native/addon.map"]
    }
  ]
}
