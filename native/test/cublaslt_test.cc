// Where cuBLASLt is looked for, what is said where it is not, and what is remembered of it. Needs neither it nor a GPU.
#include "kernels/cuda/cublaslt.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <map>
#include <thread>

#include "kernels/cuda/chosen_algorithms.h"
#include "test_main.h"

using namespace espalier;
using namespace espalier::cuda;

namespace {

namespace fs = std::filesystem;

std::vector<std::string> places(const std::map<std::string, std::string>& variables) {
  return cublaslt_places([&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

ptrdiff_t place_of(const std::vector<std::string>& list, const std::string& wanted) {
  const auto found = std::find(list.begin(), list.end(), wanted);
  REQUIRE_MESSAGE(found != list.end(), wanted);
  return found - list.begin();
}

// A folder that is gone at the end.
struct Folder {
  fs::path path = fs::temp_directory_path() / ("espalier-cublaslt-" + std::to_string(getpid()));
  Folder() { fs::create_directories(path); }
  ~Folder() { fs::remove_all(path); }
};

bool says(const Status& status, const std::string& part) { return status.message().find(part) != std::string::npos; }

}  // namespace

TEST_CASE("where cuBLASLt is looked for") {
  const Folder python;
  fs::create_directories(python.path / "lib" / "python3.12");
  const std::string wheels = (python.path / "lib" / "python3.12" / "site-packages").string();
  const std::vector<std::string> list =
      places({{"VIRTUAL_ENV", python.path}, {"CONDA_PREFIX", "/conda"}, {"CUDA_PATH", "/toolkit"}});
  const ptrdiff_t order[] = {place_of(list, wheels + "/nvidia/cu13/lib/libcublasLt.so.13"),
                             place_of(list, wheels + "/nvidia/cublas/lib/libcublasLt.so.12"),
                             place_of(list, "/conda/lib/libcublasLt.so.13"),
                             place_of(list, "libcublasLt.so.13"),
                             place_of(list, "libcublasLt.so.12"),
                             place_of(list, "/toolkit/lib64/libcublasLt.so.13"),
                             place_of(list, "/usr/local/cuda/lib64/libcublasLt.so.12")};
  CHECK(std::is_sorted(std::begin(order), std::end(order)));
  CHECK(places({}).front() == "libcublasLt.so.13");
  CHECK(places({{"CUDA_HOME", ""}, {"VIRTUAL_ENV", "/nowhere"}}) == places({}));
  CHECK(places({{"ESPALIER_CUBLASLT", "/mine"}, {"CUDA_HOME", "/toolkit"}}) == std::vector<std::string>{"/mine"});
}

TEST_CASE("why there is no cuBLASLt") {
  const Result<CublasLt> missing = load_cublaslt({"/nowhere/libcublasLt.so.13", "libnowhere.so.1"});
  REQUIRE(missing.status().code() == Code::kDevice);
  CHECK(says(missing.status(), "was not found: tried /nowhere/libcublasLt.so.13, libnowhere.so.1"));
  CHECK(says(missing.status(), "ESPALIER_CUBLASLT"));

  const Folder folder;
  const std::string file = (folder.path / "libcublasLt.so.13").string();
  std::ofstream(file) << "not a library";
  const Result<CublasLt> broken = load_cublaslt({file});
  REQUIRE(broken.status().code() == Code::kDevice);
  // The loader's own words, such as "file too short".
  CHECK(says(broken.status(), file + ": "));

  const Result<CublasLt> other = load_cublaslt({"libm.so.6"});
  REQUIRE(other.status().code() == Code::kDevice);
  CHECK(says(other.status(), "libm.so.6 has no cublasLtGetVersion"));
}

TEST_CASE("an algorithm is chosen once for each kind of product, and a bounded number is kept") {
  ChosenAlgorithms algorithms(4);
  int asked = 0;
  const auto get = [&](const ProductKind& kind) {
    const Result<lt::Choice> choice = algorithms.get(kind, [&]() -> Result<lt::Choice> {
      lt::Choice chosen{};
      chosen.algorithm[0] = static_cast<uint64_t>(++asked);
      return chosen;
    });
    REQUIRE(choice.is_ok());
    return static_cast<int>(choice.value().algorithm[0]);
  };
  ProductKind kind{{4096, 2048, 300}, {2048, 4096, 4096}, {256, 16, 256}, 0};
  CHECK(get(kind) == 1);
  CHECK(get(kind) == 1);
  const ProductKind first = kind;
  kind.sizes[2] = 301;
  CHECK(get(kind) == 2);
  kind.strides[1] = 2048;
  CHECK(get(kind) == 3);
  kind.alignments[1] = 32;
  CHECK(get(kind) == 4);
  CHECK(get(first) == 1);
  kind.y_type = 14;
  CHECK(get(kind) == 5);
  CHECK(algorithms.size() <= 4);
  CHECK(get(kind) == 5);
  for (uint64_t tokens = 1; tokens < 50; ++tokens) {
    kind.sizes[2] = tokens;
    const int mine = get(kind);
    CHECK(get(kind) == mine);
    CHECK(algorithms.size() <= 4);
  }
}

TEST_CASE("of a kind for which nothing could be chosen it is asked again") {
  ChosenAlgorithms algorithms(4);
  const auto fail = []() -> Result<lt::Choice> { return Status(Code::kDevice, "none"); };
  CHECK(algorithms.get({}, fail).status().code() == Code::kDevice);
  CHECK(algorithms.size() == 0);
  CHECK(algorithms.get({}, []() -> Result<lt::Choice> { return lt::Choice{}; }).is_ok());
  CHECK(algorithms.get({}, fail).is_ok());
}

TEST_CASE("several threads may ask for algorithms") {
  ChosenAlgorithms algorithms(64);
  std::atomic<int> asked{0};
  const auto work = [&] {
    for (uint64_t i = 0; i < 2000; ++i) {
      const Result<lt::Choice> choice = algorithms.get({.sizes = {i % 32, 0, 0}}, [&]() -> Result<lt::Choice> {
        ++asked;
        lt::Choice chosen{};
        chosen.algorithm[0] = i % 32;
        return chosen;
      });
      if (!choice.is_ok() || choice.value().algorithm[0] != i % 32) asked += 1000;
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  CHECK(asked == 32);
}
