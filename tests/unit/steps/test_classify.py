"""What the rules say a step is, over wordings the rules were not copied from."""

import pytest

from tracefactory.text.steps import StepKind, classify, classify_all
from tracefactory.text.steps.classify import states_answer

V, R, S, C, F, D = (
    StepKind.VERIFICATION,
    StepKind.REFLECTION,
    StepKind.RESTART,
    StepKind.CONCLUSION,
    StepKind.FILLER,
    StepKind.DERIVATION,
)


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        ("Let me double-check this: 3 * 4 = 12.", V),
        ("To verify, plug x = 2 back into the equation.", V),
        ("Okay, so let me just check that again.", V),
        ("Wait, let me verify the last sum.", V),
        ("Substituting x = 3 back into the original equation gives 9 = 9.", V),
        ("As a sanity check, for n = 1 we get 2.", V),
        ("**Verification:** 5 + 7 = 12", V),
        ("Is that correct? 4 + 4 = 8, yes.", V),
        ("Now check my arithmetic: 15 + 6 = 21.", V),
        ("让我们检验一下：当x=2时，左边等于4。", V),
        ("验算：3×4=12，没有问题。", V),
        ("再检查一遍计算过程。", V),
        ("So, substituting back into our expression for b: b = 56/d - 7.", D),
        ("We need to make sure that k is positive, so k = 1.", D),
        ("Let me make sure I didn't miss a case.", V),
        ("Hmm, okay.. Let's make sure.", V),
        ("Now, check each divisor of 56 that is above 9.", D),
        ("Check if 28 divides 196: 196/28 = 7.", D),
        ("Wait, that's not right: the base must be above 9.", R),
        ("Hmm, but the sum is 12, so one of them must be odd.", R),
        ("Hold on. The problem says integers.", R),
        ("I think I made a mistake in the second line.", R),
        ("Wait, so is the answer 5?", R),
        ("等等，这里算错了，应该是12。", R),
        ("不对，3乘4是12。", R),
        ("但是等一下，题目说的是正整数。", R),
        ("Alternatively, use the law of cosines.", S),
        ("Let me try a different approach: induction on n.", S),
        ("Maybe there is another way; let me start over with n = 1.", S),
        ("Let's start over.", S),
        ("换一种思路，考虑用余弦定理。", S),
        ("重新计算一下总数，先看男生。", S),
        ("另一种方法是画图。", S),
        ("Therefore, the answer is 70.", C),
        ("Adding these, 49 + 21 = 70.\n\n\\[\\boxed{70}\\]", C),
        ("**Final Answer:** 12", C),
        ("Therefore, 16 is the answer.", C),
        ("#### 18", C),
        ("综上所述，一共有12种。", C),
        ("所以答案是70。", C),
        ("So maybe the answer is 336?", D),
        ("If the answer is 5, then b would be 2.", D),
        ("Put your final answer in \\boxed{}.", D),
        ("可能答案是5，但还要看b。", D),
        ("Okay, let's see.", F),
        ("Hmm, let me think about this step by step.", F),
        ("Alright, I need to be careful here.", F),
        ("---", F),
        ("好的，让我想想。", F),
        ("So, we have 3 apples.", D),
        ("Let me compute f(2).", D),
        ("4. **Verify the total:**\n   - 3 boxes of 4 make 12.", V),
        ("**Step 5: Check the result.** 3 + 9 = 12.", V),
        ("This confirms what we had: 12 tiles.", V),
        ("I check that the formula agrees for n = 2.", V),
        ("We check each tile in turn.", D),
        ("...Better double-check the units.", V),
        ("First, let me make sure I understand what is given: two sides are 5.", D),
        ("Let me picture this. A prism has two bases and three faces.", D),
        ("Let's see the options: red or blue.", D),
        ("I'm really stuck here. Maybe the parity helps?", R),
        ("This isn't getting me anywhere near the bound.", R),
        ("That looks quite messy. Maybe this isn't the way.", R),
        ("Or maybe the tiles may overlap.", S),
        ("Okay, here's a better approach: count the complement.", S),
        ("Instead, let me count the pairs that fail.", S),
        ("Instead of a circle, the path is a square.", D),
        ("So the conclusion is that nobody can win.", C),
        ("So the shortest answer is 12 tiles.", C),
        ("The answer should be of the form p/q with p and q coprime.", D),
        ("I think the answer is no because both weigh the same, even if one looks larger.", C),
        ("The answer is 70, but is it?", D),
        ("By symmetry, the two triangles are equal.", D),
        ("因此x=3。", D),
        ("42", D),
    ],
)
def test_rules_classify_a_step(step: str, kind: StepKind) -> None:
    assert classify(step)[0] is kind, classify(step)


def test_the_rule_that_decided_is_named() -> None:
    assert classify("Let me double-check.")[1] == "check_announced"
    assert classify("x = 3")[1] == "no_rule"


def test_a_confirmation_belongs_to_the_check_above_it() -> None:
    kinds = [kind for kind, _ in classify_all(["Let me verify.", "2 + 2 = 4, which matches.", "Now x = 3."])]
    assert kinds == [V, V, D]


def test_a_failed_check_is_not_part_of_the_check() -> None:
    kinds = [kind for kind, _ in classify_all(["Let me verify.", "2 + 3 = 6 does not hold, so none works."])]
    assert kinds == [V, D]


@pytest.mark.parametrize(
    ("sentence", "states"),
    [
        ("Wait, so the answer is 70.", True),
        ("The answer is 70?", False),
        ("I'm not sure the answer is 70.", False),
        ("The answer is not 70, it is 71 if b = 2.", False),
        ("答案应该是70。", True),
        ("答案是70吗？", False),
        ("If n = 2, we get \\boxed{5}.", True),
    ],
)
def test_a_hedged_answer_is_not_stated(sentence: str, states: bool) -> None:
    assert states_answer(sentence) is states
