#include "kernels/cuda/cublaslt.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <system_error>

namespace espalier::cuda {
namespace {

namespace fs = std::filesystem;

// The newest first.
constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
// Where the wheels of these versions have them, in site-packages.
constexpr const char* kWheelFolders[] = {"nvidia/cu13/lib", "nvidia/cublas/lib"};

// The folders of the wheels in an environment of Python's.
std::vector<fs::path> wheel_folders(const fs::path& environment) {
  std::vector<fs::path> folders;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(environment / "lib", error)) {
    if (!entry.path().filename().string().starts_with("python")) continue;
    for (const char* folder : kWheelFolders) folders.push_back(entry.path() / "site-packages" / folder);
  }
  std::sort(folders.begin(), folders.end());
  return folders;
}

std::string join(const std::vector<std::string>& list) {
  std::string all;
  for (const std::string& item : list) all += (all.empty() ? "" : ", ") + item;
  return all;
}

std::string version_name(size_t version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

Result<CublasLt> bind(void* library, const std::string& place) {
  CublasLt out;
  std::string missing;
  const auto find = [&]<class Function>(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr && missing.empty()) missing = name;
  };
  size_t (*version)() = nullptr;
  find(version, "cublasLtGetVersion");
  find(out.create, "cublasLtCreate");
  find(out.destroy, "cublasLtDestroy");
  find(out.layout_create, "cublasLtMatrixLayoutCreate");
  find(out.layout_destroy, "cublasLtMatrixLayoutDestroy");
  find(out.task_create, "cublasLtMatmulDescCreate");
  find(out.task_destroy, "cublasLtMatmulDescDestroy");
  find(out.task_set, "cublasLtMatmulDescSetAttribute");
  find(out.preference_create, "cublasLtMatmulPreferenceCreate");
  find(out.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find(out.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  find(out.choose, "cublasLtMatmulAlgoGetHeuristic");
  find(out.multiply, "cublasLtMatmul");
  if (!missing.empty()) {
    dlclose(library);
    return Status(Code::kDevice, place + " has no " + missing + ", so that it is not cuBLASLt");
  }
  out.version = version_name(version());
  Dl_info info;
  const bool is_known = dladdr(reinterpret_cast<void*>(version), &info) != 0 && info.dli_fname != nullptr;
  out.file = is_known ? info.dli_fname : place;
  return out;
}

}  // namespace

std::vector<std::string> cublaslt_places(const std::function<const char*(const char*)>& environment) {
  const auto value = [&](const char* name) {
    const char* found = environment(name);
    return std::string(found == nullptr ? "" : found);
  };
  if (const std::string file = value("ESPALIER_CUBLASLT"); !file.empty()) return {file};
  std::vector<std::string> places;
  const auto add_folder = [&](const fs::path& folder) {
    for (const char* name : kNames) places.push_back((folder / name).string());
  };
  if (const std::string python = value("VIRTUAL_ENV"); !python.empty()) {
    for (const fs::path& folder : wheel_folders(python)) add_folder(folder);
  }
  if (const std::string conda = value("CONDA_PREFIX"); !conda.empty()) {
    for (const fs::path& folder : wheel_folders(conda)) add_folder(folder);
    add_folder(fs::path(conda) / "lib");
  }
  places.insert(places.end(), std::begin(kNames), std::end(kNames));
  for (const char* name : {"CUDA_HOME", "CUDA_PATH"}) {
    if (const std::string toolkit = value(name); !toolkit.empty()) add_folder(fs::path(toolkit) / "lib64");
  }
  add_folder("/usr/local/cuda/lib64");
  return places;
}

Result<CublasLt> load_cublaslt(const std::vector<std::string>& places) {
  std::vector<std::string> tried;
  for (const std::string& place : places) {
    void* const library = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) return bind(library, place);
    const char* why = dlerror();
    // Of what is there, why it cannot be loaded.
    std::error_code error;
    const bool is_there = place.find('/') != std::string::npos && fs::exists(place, error);
    tried.push_back(is_there && why != nullptr ? std::string(why) : place);
  }
  return Status(Code::kDevice, "cuBLASLt was not found: tried " + join(tried) +
                                   "; set ESPALIER_CUBLASLT to its file if it is elsewhere");
}

const Result<CublasLt>& find_cublaslt() {
  static const Result<CublasLt> found =
      load_cublaslt(cublaslt_places([](const char* name) { return std::getenv(name); }));
  return found;
}

}  // namespace espalier::cuda
