// Sums over the rows, one per column (dweight, dbias, ...), in an order that the shape alone fixes.
//
// The rows are cut into blocks; each block adds up its rows into a partial of its own, and the partials are added pairwise.
#pragma once

#include "kernels.h"
#include "parameters.h"
#include "sums.h"

namespace addnorm::ADDNORM_ISA {

constexpr int kColumnSums = 4;
enum ColumnSum { kWeight, kBias, kBranchBias, kBranchScale };

// A fixed function of the shape: few enough blocks that the partials stay small beside the activations, enough for the threads.
struct RowBlocks {
  int64_t rows, length;
  explicit RowBlocks(int64_t rows) : rows(rows) {
    const int64_t least = rows <= 128 ? 16 : 32, most = 64;
    const int64_t wanted = (rows + most - 1) / most;
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

  // Piece u of the first K sums.
  template <int K> ADDNORM_INLINE void add(int64_t column, int u, const Piece<T>* sums) const {
    each<K>([&](auto k) ADDNORM_LAMBDA {
      if (!total[k]) return;
      T* const p = total[k] + column;
      store_piece(p, u, load_piece<T>(p, u) + sums[k]);
    });
  }
};

template <class Access> class Partials {
 public:
  using T = typename Access::T;

  Partials(const Backward& b, int64_t blocks) : outputs_{b.dweight, b.dbias, b.dbranch_bias, b.dbranch_scale}, d_(b.d), blocks_(blocks) {
    for (const Vector& v : outputs_) count_ += v.data != nullptr;
  }

  int64_t space() const { return Scratch::space<T>(size()); }
  void place(Scratch& scratch) { data_ = scratch.take<T>(size()) + skewed(0); }  // apart from the weight before it, too
  bool any() const { return count_ > 0; }

  ColumnTotals<T> totals_of(int64_t block) const {
    ColumnTotals<T> result;
    T* next = data_ + block * count_ * skewed(d_);
    for (int i = 0; i < kColumnSums; ++i) {
      result.total[i] = outputs_[i].data ? next : nullptr;
      if (outputs_[i].data) next += skewed(d_);
    }
    return result;
  }

  // Adds the blocks up and writes the outputs.
  void finish(const Runtime& runtime) {
    const int64_t steps = padded(d_) / kStep, work = kStep * count_ * blocks_;
    const int64_t grain = 16384 / work + 1;
    if (steps <= grain) add_blocks(this, 0, steps);
    else runtime.parallel_for(steps, grain, this, add_blocks);
    const ColumnTotals<T> totals = totals_of(0);
    for (int i = 0; i < kColumnSums; ++i)
      if (outputs_[i].data) write(outputs_[i], totals.total[i]);
  }

 private:
  int64_t size() const { return blocks_ * count_ * skewed(d_) + skewed(0); }

  // The totals take the place of block 0: a few partials one after the other, and such groups pairwise.
  static void add_blocks(void* context, int64_t begin, int64_t end) {
    constexpr int64_t kGroup = 8;
    const Partials& p = *static_cast<Partials*>(context);
    const int64_t row = skewed(p.d_), block = p.count_ * row;
    for (int64_t step = begin; step < end; ++step) {
      for (int k = 0; k < p.count_; ++k) {
        T* const first = p.data_ + k * row + step * kStep;
        const auto group = [&](int64_t i) ADDNORM_LAMBDA {
          Pair<T> v = load_pair<T>(first + i * block, Whole{});
          for (int64_t j = i + 1; j < p.blocks_ && j < i + kGroup; ++j) v = v + load_pair<T>(first + j * block, Whole{});
          return v;
        };
        Pair<T> total = group(0);
        if (p.blocks_ > kGroup) {
          PairwiseSum<T> a, b;
          a.add(total.a), b.add(total.b);
          for (int64_t i = kGroup; i < p.blocks_; i += kGroup) {
            const Pair<T> v = group(i);
            a.add(v.a), b.add(v.b);
          }
          total = {a.total(), b.total()};
        }
        store_pair(first, Whole{}, total);
      }
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
  const int64_t d_, blocks_;
  int count_ = 0;
  T* data_ = nullptr;
};

}  // namespace addnorm::ADDNORM_ISA
