// The order in which a warp runs its code where its lanes have parted: the lanes that are furthest
// behind go first, so that the others wait for them where the paths meet. For this the blocks are
// laid out so that each comes before what follows it, and a loop as a whole before what follows
// the loop: a weak topological order (Bourdoncle, Efficient Chaotic Iteration Strategies with
// Widenings, 1993).
#include <algorithm>
#include <set>

#include "program.hpp"

namespace ptx {
namespace {

bool ends(const Instr& instr) { return instr.flow == Flow::kReturn || instr.flow == Flow::kTrap; }

std::vector<int> starts_of(const std::vector<Instr>& code) {
  const int count = static_cast<int>(code.size());
  std::set<int> starts{0};
  for (int i = 0; i < count; ++i) {
    if (code[i].flow == Flow::kBranch) starts.insert(code[i].target);
    if (code[i].flow == Flow::kBranch || ends(code[i])) starts.insert(i + 1);
  }
  starts.erase(count);
  return {starts.begin(), starts.end()};
}

struct Graph {
  std::vector<int> first;  // instruction of each block, and the number of instructions
  std::vector<std::vector<int>> next;

  int block_at(int pc) const {
    return static_cast<int>(std::lower_bound(first.begin(), first.end(), pc) - first.begin());
  }
};

Graph graph_of(const std::vector<Instr>& code) {
  Graph graph;
  graph.first = starts_of(code);
  const size_t blocks = graph.first.size();
  graph.first.push_back(static_cast<int>(code.size()));
  graph.next.resize(blocks);
  for (size_t b = 0; b < blocks; ++b) {
    const Instr& last = code[graph.first[b + 1] - 1];
    const bool goes_on = !ends(last) && last.flow != Flow::kBranch;
    if (last.flow == Flow::kBranch) graph.next[b].push_back(graph.block_at(last.target));
    if ((goes_on || last.guarded) && b + 1 < blocks)
      graph.next[b].push_back(static_cast<int>(b) + 1);
  }
  return graph;
}

class WeakOrder {
 public:
  explicit WeakOrder(const Graph& graph) : graph_(graph), number_(graph.next.size(), 0) {
    visit(0);
    std::reverse(order_.begin(), order_.end());
  }
  const std::vector<int>& order() const { return order_; }

 private:
  static constexpr int kDone = 1 << 30;

  // Appends in reverse: what is found later comes earlier.
  int visit(int block) {
    stack_.push_back(block);
    int head = number_[block] = ++counter_;
    bool loop = false;
    for (int n : graph_.next[block]) {
      const int least = number_[n] == 0 ? visit(n) : number_[n];
      if (least > head) continue;
      head = least;
      loop = true;
    }
    if (head != number_[block]) return head;
    number_[block] = kDone;
    while (stack_.back() != block) {
      number_[stack_.back()] = loop ? 0 : kDone;
      stack_.pop_back();
    }
    stack_.pop_back();
    for (int n : graph_.next[block])
      if (loop && number_[n] == 0) visit(n);
    order_.push_back(block);
    return head;
  }

  const Graph& graph_;
  std::vector<int> number_, stack_, order_;
  int counter_ = 0;
};

}  // namespace

void lay_out(Function& f) {
  if (f.code.empty()) return;
  const Graph graph = graph_of(f.code);
  const std::vector<int> order = WeakOrder(graph).order();
  std::vector<int> moved(f.code.size(), -1);
  std::vector<Instr> code;
  for (int block : order)
    for (int i = graph.first[block]; i < graph.first[block + 1]; ++i) {
      moved[i] = static_cast<int>(code.size());
      code.push_back(f.code[i]);
      code.back().next = i + 1;
    }
  for (Instr& instr : code) {
    instr.next = instr.next < static_cast<int>(moved.size()) ? moved[instr.next] : -1;
    if (instr.flow == Flow::kBranch) instr.target = moved[instr.target];
  }
  f.code = std::move(code);
  f.counts.resize(f.code.size());
}

}  // namespace ptx
