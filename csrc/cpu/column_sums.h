// Sums over the rows, one per column (dweight, dbias, ...), in an order that the shape alone fixes.
//
// The rows are cut into blocks; each block adds up its rows into a partial of its own, and the partials are added in a binary tree over the
// blocks. A thread adds those of its own as soon as it has them; few are left to be fetched from other cores. In a long block the rows of
// a group are added one after another, and then the groups: so sums over many rows stay good.
#pragma once

#include "isa/denormals.h"
#include "kernels.h"
#include "parameters.h"
#include "sums.h"

namespace addnorm::ADDNORM_ISA {

constexpr int kColumnSums = 4;
enum ColumnSum { kWeight, kBias, kBranchBias, kBranchScale };

// A fixed function of the shape: few enough blocks that the partials stay small beside the activations, enough for the threads.
struct RowBlocks {
  static constexpr int64_t kMost = 64, kGroup = 64;
  int64_t rows, length;
  explicit RowBlocks(int64_t rows) : rows(rows) {
    const int64_t least = rows <= 128 ? 16 : 32;
    const int64_t wanted = (rows + kMost - 1) / kMost;
    length = ((wanted > least ? wanted : least) + 3) / 4 * 4;
  }
  int64_t count() const { return (rows + length - 1) / length; }
  int64_t begin(int64_t block) const { return block * length; }
  int64_t end(int64_t block) const { return (block + 1) * length < rows ? (block + 1) * length : rows; }
};

// One block's accumulators; null where a sum is not asked for.
template <class T> struct ColumnTotals {
  T* total[kColumnSums];

  void clear(int64_t d) const {
    for (T* t : total)
      if (t) __builtin_memset(t, 0, static_cast<size_t>(padded(d)) * sizeof(T));
  }

  // To piece u of 32 columns of a sum.
  ADDNORM_INLINE void add(ColumnSum sum, int64_t column, int u, Piece<T> term) const {
    T* const p = total[sum];
    if (p) store_piece(p + column, u, load_piece<T>(p + column, u) + term);
  }
  ADDNORM_INLINE void add_product(ColumnSum sum, int64_t column, int u, Piece<T> a, Piece<T> b) const {
    T* const p = total[sum];
    if (p) store_piece(p + column, u, fma(a, b, load_piece<T>(p + column, u)));
  }
};

template <class Access> class Partials {
 public:
  using T = typename Access::T;

  Partials(const Backward& b, RowBlocks blocks)
      : outputs_{b.dweight, b.dbias, b.dbranch_bias, b.dbranch_scale}, weight_(b.weight.data), d_(b.d), blocks_(blocks),
        flushes_(b.dy.data != nullptr) {
    for (const Vector& v : outputs_) count_ += v.data != nullptr;
  }

  int64_t space() const { return apart_space<T>(blocks_.count() * block_size()); }
  void place(Scratch& scratch) { data_ = take_apart<T>(scratch, blocks_.count() * block_size(), {weight_}); }
  bool any() const { return count_ > 0; }

  // What a thread needs for itself: two groups, since the next one's first row is at hand before the last of one is added.
  int64_t groups_space() const { return blocks_.length > RowBlocks::kGroup ? apart_space<T>(2 * block_size()) : 0; }
  T* take_groups(Scratch& scratch) const { return groups_space() ? take_apart<T>(scratch, 2 * block_size(), {weight_}) : nullptr; }

  // The sums of a group: the block's own for its first, else one of the thread's.
  ColumnTotals<T> totals_of(int64_t block, int64_t group = 0, T* groups = nullptr) const {
    ColumnTotals<T> result;
    T* next = group == 0 ? data_ + block * block_size() : groups + group % 2 * block_size();
    for (int i = 0; i < kColumnSums; ++i) {
      result.total[i] = outputs_[i].data ? next : nullptr;
      if (outputs_[i].data) next += skewed<T>(d_);
    }
    return result;
  }

  // `row` is the last of its group: the group is added to its block, and a block that is whole to those from `first` on.
  void complete(int64_t first, int64_t row, T* groups) {
    const int64_t block = row / blocks_.length, group = row % blocks_.length / RowBlocks::kGroup;
    if (group > 0) add(totals_of(block), totals_of(block, group, groups), 0, padded(d_));
    if (row + 1 == blocks_.end(block)) join(first, block);
  }

  // Adds up what is left and writes the outputs.
  void finish(const Runtime& runtime) {
    int64_t left = -1;  // the root is added to none
    for (int64_t i = 0; i < blocks_.count(); ++i) left += !joined_[i];
    const int64_t steps = padded(d_) / kStep, grain = 16384 / (kStep * count_ * left + 1) + 1;
    if (left == 0 || steps <= grain) add_rest(this, 0, steps);
    else runtime.parallel_for(steps, grain, this, add_rest);
    const ColumnTotals<T> totals = totals_of(0);
    for (int i = 0; i < kColumnSums; ++i)
      if (outputs_[i].data) write(outputs_[i], totals.total[i]);
  }

 private:
  // Whole pages: all blocks lie alike.
  int64_t block_size() const { return in_pages<T>(count_ * skewed<T>(d_)); }

  // Block `last` is complete, as those from `first` on are: subtrees of which both halves are among them are added up.
  void join(int64_t first, int64_t last) {
    int64_t root = last;
    for (int64_t span = 1; (last & span) && root - span >= first; span *= 2) {
      add(totals_of(root - span), totals_of(root), 0, padded(d_));
      joined_[root] = true;
      root -= span;
    }
  }

  // Adds the columns [begin, end) of some sums to those of others.
  void add(const ColumnTotals<T>& sum, const ColumnTotals<T>& term, int64_t begin, int64_t end) const {
    for (int i = 0; i < kColumnSums; ++i) {
      for (int64_t c = begin; sum.total[i] && c < end; c += kStep) {
        const Pair<T> v = load_pair<T>(sum.total[i] + c, Whole{}) + load_pair<T>(term.total[i] + c, Whole{});
        store_pair(sum.total[i] + c, Whole{}, v);
      }
    }
  }

  // The steps [begin, end) of what no thread had both halves of. The totals take the place of block 0.
  static void add_rest(void* context, int64_t begin, int64_t end) {
    const Partials& p = *static_cast<Partials*>(context);
    const FlushDenormals flush(p.flushes_);  // as where blocks are joined
    const int64_t blocks = p.blocks_.count();
    for (int64_t span = 1; span < blocks; span *= 2) {
      for (int64_t i = 0; i + span < blocks; i += 2 * span)
        if (!p.joined_[i + span]) p.add(p.totals_of(i), p.totals_of(i + span), begin * kStep, end * kStep);
    }
  }

  void write(const Vector& output, const T* total) const {
    if (output.scalar) {
      T sums[1];
      row_sums<true>(d_, sums, [&](int64_t c, auto n, auto sum) ADDNORM_LAMBDA {
        each<kPieces<T>>([&](auto u) ADDNORM_LAMBDA { sum[u][0] = sum[u][0] + only<Access::kOrder>(n, u, load_piece<T>(total + c, u)); });
      });
      return store_scalar(output, 0, sums[0]);
    }
    columns<true>(0, d_, [&](int64_t c, auto n) ADDNORM_LAMBDA {
      store_vector<Access::kOrder>(output, c, n, load_pair<T>(total + c, Whole{}));
    });
  }

  const Vector outputs_[kColumnSums];
  const void* const weight_;
  const int64_t d_;
  const RowBlocks blocks_;
  const bool flushes_;
  int count_ = 0;
  bool joined_[RowBlocks::kMost] = {};  // added to the block that begins the other half of its subtree
  T* data_ = nullptr;
};

}  // namespace addnorm::ADDNORM_ISA
