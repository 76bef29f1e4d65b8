// One weight matrix through the stages of a pruning method: score, choice under a budget, weight update. A method is
// data, a MethodPlan; what it needs of the calibration inputs is prepared once for a site and used for every matrix
// that reads it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/status.h"
#include "core/thread_pool.h"
#include "prune/alps.h"
#include "prune/inverse_factor.h"
#include "prune/mask.h"
#include "prune/sparsegpt.h"
#include "prune/statistics.h"
#include "sparse/format.h"

namespace espalier {

enum class Score {
  kMagnitude,    // |W|; needs no statistics
  kActivation,   // |W| · ‖X_j‖
  kRelative,     // (|W| / Σ|its column| + |W| / Σ|its row|) · ‖X_j‖^power
  kSecondOrder,  // w² / U_jj², taken within the update
};

// Which weights an unstructured choice compares. N:M compares within its groups, unless the choice is given.
enum class Comparison {
  kMatrix,  // one threshold
  kRow,     // an equal share of every row
  kBlock,   // one threshold for each block of columns
  kGiven,   // none: the weights that are zero stay so, and no others go
};

enum class Update {
  kNone,
  kSparseGpt,  // makes the choice too: goes with Score::kSecondOrder and Comparison::kBlock or kGiven, only with them
  kAlps,       // makes the choice too: goes with Score::kSecondOrder and Comparison::kMatrix, only with them
};

// What meets an unstructured budget.
enum class Meeting {
  kEach,     // every matrix
  kExperts,  // the matrices of one role of all experts of a part together, see prune/balance.h
};

struct MethodPlan {
  Score score = Score::kMagnitude;
  Comparison comparison = Comparison::kMatrix;
  Update update = Update::kNone;
  Budget budget;
  Meeting meeting = Meeting::kEach;  // for whoever makes the plans of single matrices
  bool permute_channels = false;     // likewise: n:m in the order of channels of prune/channel_permutation.h
  double damping = 0.01;             // added to the Gram matrix, as a fraction of its mean diagonal
  double shrinkage = 0;              // of the Gram matrix, see prune/hessian.h
  int64_t block = 128;               // columns of a block
  double power = 0.5;                // of the input's length in Score::kRelative
  // What is kept is rounded to (prune/value_grid.h): kInt8 or kInt4, within the update where there is one; kF32: not
  // rounded.
  Values values = Values::kF32;

  static MethodPlan magnitude(Budget budget);
  // Wanda; MoE-Pruner with router-weighted statistics.
  static MethodPlan activation(Budget budget);
  static MethodPlan relative(Budget budget);  // RIA
  static MethodPlan sparsegpt(Budget budget);
  static MethodPlan alps(Budget budget);
  // Rounds with error compensation (GPTQ) and prunes nothing: zeros stay, and nothing but rounding adds to them.
  static MethodPlan quantize(Values values);
};

// kUsage where the parts do not go together or are out of range.
Status check_plan(const MethodPlan& plan);

// What a plan uses of one input site.
struct PreparedSite {
  bool fallback = false;     // the method needs statistics and no token reached the expert
  std::vector<float> norms;  // ‖X_j‖, for Score::kActivation and kRelative
  InverseFactor factor;      // for Update::kSparseGpt, and to round with compensation after kAlps
  // Where it is not null it has the matrix of `factor`, which is empty, and prunes by it.
  std::shared_ptr<SparseGptWalk> walk;
  ScaledHessian hessian;  // for Update::kAlps
  double shrunk = 0;      // share of H that is not the expert's own Gram matrix
  bool starved = false;   // its Gram matrix is of fewer tokens than it has columns
};

// Whether inputs say nothing about the weights behind them: no token came, or zeros only. kNonFinite where they were
// not finite.
Result<bool> says_nothing(int64_t tokens, const std::vector<double>& squared_norms);

// `statistics` may be null for a plan that needs none; it is finished here. An update needs its Gram matrix (kUsage
// without). `pooled`, or null: what its Gram matrix is shrunk to. kNonFinite where calibration inputs were not finite,
// kOutOfMemory.
Result<PreparedSite> prepare_site(ThreadPool& pool, const MethodPlan& plan, SiteStatistics* statistics,
                                  const SiteStatistics* pooled = nullptr);

// The score stage: scores [rows, cols] of `weights`; |W| where the site has nothing to go by. Score::kSecondOrder is
// taken within the update and has none.
void score_matrix(ThreadPool& pool, const MethodPlan& plan, const PreparedSite& site, const float* weights,
                  int64_t rows, int64_t cols, float* scores);

// Where masks are chosen if not on the CPU.
class MatrixMasks {
 public:
  virtual ~MatrixMasks() = default;
  // Zeroes the weights that the plan's choice does not keep, the same ones as the CPU; `norms`: those of the site, null
  // where the score is |W_ij|. False where such plans are left to the CPU: nothing is done then. The errors of the
  // device.
  virtual Result<bool> apply(const MethodPlan& plan, const float* norms, float* weights, int64_t rows,
                             int64_t cols) = 0;
};

struct MatrixReport {
  int64_t zeros = 0;      // weights that are zero now
  int64_t kept = 0;       // the others
  double sparsity = 0;    // zeros / all
  bool fallback = false;  // no token reached the expert: chosen by magnitude among the same weights, not updated
  bool starved = false;   // as PreparedSite has them
  double shrunk = 0;
  double damping = 0;  // used by the update; more than the plan's where that was not enough
};

// Prunes `weights` [rows, cols], one row for each output, in place: pruned weights become +0, and what is kept changes
// only through the update and rounding (a site to fall back on rounds without compensation). kNonFinite where a weight
// is not finite (nothing is changed then), kUsage where plan, site and matrix do not fit, kOutOfMemory. The result is
// the same bytes for any number of threads. `masks`, or null: what is asked first for the choice without update.
Result<MatrixReport> prune_matrix(ThreadPool& pool, const MethodPlan& plan, const PreparedSite& site, float* weights,
                                  int64_t rows, int64_t cols, MatrixMasks* masks = nullptr);

}  // namespace espalier
