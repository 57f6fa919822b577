"""The cues of the classification rules, in English and Chinese: regular expressions that the rules combine."""

from __future__ import annotations

# --- verification ------------------------------------------------------------------------------------------------
# "check" also describes a search ("check each divisor"), which is a derivation; a verification refers back.
LOOKS_BACK = (
    "this",
    "that",
    "it",
    "these",
    "again",
    "once more",
    "twice",
    "back",
    "my",
    "our",
    "everything",
    "against",
    "with (?:the )?original",
    "(?:if|whether) (?:this|that|it|the answer|the result|everything|my|our|i)",
    (
        r"the (?:answer|result|calculations?|computations?|work|solution"
        r"|steps?|logic|reasoning|math|formula|arithmetic|sum|units)"
    ),
)
CHECK = (
    r"double[- ]?check(?:ing)?",
    r"verif(?:y|ying)",
    r"re-?check(?:ing)?",
    r"re-?verify(?:ing)?",
    r"cross[- ]?check",
    r"confirm(?:ing)?",
    "validat(?:e|ing)",
    "sanity",
    (
        r"mak(?:e|ing) sure (?:that )?(?:i(?! (?:understand|get|grasp)\b)|this|it|my|everything|all|there"
        r"|the (?:answer|result|calculations?))\b"
    ),
    r"be (?:sure|safe|certain|thorough)",
    r"(?:i|we) (?:then |now |also |should )*(?:check|verify|confirm) (?:that|this|it|my|our|the (?:answer|result))\b",
    (
        r"(?:this|that|which|it|everything) (?:also |indeed )?(?:confirms|verifies|checks out|agrees with|matches"
        r"|is consistent with|gives the same (?:answer|result|value))\b"
    ),
    "verification",
    "checking",
    r"(?:check|make sure)\s*(?:[:.,!—-]|\Z)",
    r"test (?:this|that|it|the answer|the formula)",
    r"go (?:back )?over (?:this|that|it|my)",
    r"(?:plug(?:ging)?|substitut(?:e|ing)|put(?:ting)?)\b[^.\n]{0,60}\bback\b[^.\n]{0,30}\b(?:original|given|check|verify)",
    r"(?:as |for |do )?(?:a |one )(?:quick |final |sanity )*check\b",
    r"(?:did|have) i\b[^.\n]*\?",
    r"is (?:this|that|it|my|the answer)\b[^.\n]{0,40}\b(?:correct|right|consistent)\b[^.\n]*\?",
)
CHECK_ZH = (
    "验证",
    "检验",
    "验算",
    "核实",
    "核对",
    "复核",
    "复查",
    "检查",
    "确认",
    "再算一[遍次]",
    "重新检查",
    "回代",
    "代回",
    "代入(?:原|检验|验证)",
)

# --- restart -----------------------------------------------------------------------------------------------------
WAYS = (
    "(?:ways?|approach(?:es)?|methods?|ideas?|strateg(?:y|ies)|paths?|angles?|routes?|perspectives?|thoughts?|options?)"
)
RESTART = (
    r"start(?:ing)?\s+(?:over|again|afresh|fresh|from (?:scratch|the beginning))",
    "restart",
    "redo",
    "scratch that",
    "re-?read",
    "re-?think (?:this|the)",
    "reconsider the (?:problem|question|approach)",
    "begin again",
    r"go back to the (?:problem|start|beginning)",
    "alternatively",
    r"instead,? (?:let|i|we|maybe|perhaps|consider|try|use|think)\b",
    "or (?:maybe|perhaps|alternatively)",
    f"here(?:'s| is) (?:the|a|an|another) (?:correct|right|better|different|new|simpler|other) {WAYS}",
    f"(?:maybe|perhaps) there(?:'s| is) (?:a|an|another) (?:better |different |simpler |smarter )?{WAYS}",
    f"(?:a |an )?(?:another|different|alternative) {WAYS}",
    r"(?:try(?:ing)?|use|consider|think of|think about|look at|approach)\b[^.\n]{0,60}\b(?:another|differently)",
    (
        rf"(?:try(?:ing)?|use|consider|think of|look at"
        rf"|approach)\b[^.\n]{{0,60}}\b(?:different|alternative|new|other|better) {WAYS}"
    ),
)
RESTART_ZH = (
    "重新(?:开始|来|考虑|思考|推导|审题|读题|计算|梳理|理解|分析)",
    "从头(?:开始|再?来)?",
    "推倒重来",
    "或者[，,]",
    "换(?:一)?[种个](?:方法|思路|角度|方式|办法|做法)",
    "[另别]外?一?[种个条的](?:方法|思路|角度|办法|方式)",
)

# --- reflection --------------------------------------------------------------------------------------------------
DOUBT = (
    r"wait\b",
    "hold on",
    "hang on",
    "oops",
    "not so fast",
    r"uh[- ]?oh",
    (
        r"(?:hm+|oh|actually|no)\b[^.\n]*(?:\?|\d|\\|=|\bbut\b|wrong|mistake"
        r"|can't|n't\b|confus|contradict|problem|error|incorrect|forgot|miss)"
    ),
    (
        r"(?:that|this|it|something)(?:'s| is| was| seems| looks) (?:not "
        r"|in)?(?:wrong|correct\?|right\?|right\b(?=[^.\n]*$)|off|odd|strange|weird)"
    ),
    r"(?:that|this|it)(?:'s| is| was| seems) (?:not |im)(?:correct|right|possible|quite)",
    r"(?:that|this|it) (?:can't|cannot) be",
    r"(?:that|this|it) (?:doesn't|does not) (?:seem|look|make sense|work)",
    r"[^.\n]{0,40}\ba contradiction",
    (
        r"[^.\n]{0,40}\bi (?:must have |might have |may have |think i )*(?:made (?:a"
        r"|an) (?:mistake|error)|messed up|mis\w+|missed|forgot|overlooked)"
    ),
    (
        r"i(?:'m| am) (?:\w+ )?(?:stuck|confused|lost|going (?:around )?in circles|overcomplicating|overthinking"
        r"|getting (?:nowhere|confused)|mixing)"
    ),
    r"(?:this|that|it)(?: is|'s)?(?:n't| not) (?:really )?(?:getting|going|leading|helping)",
    r"(?:this|that|it)(?: is|'s| seems| looks) (?:\w+ )?(?:complicated|messy|tedious|cumbersome|complex)\b",
    r"(?:maybe|perhaps) (?:this|that|it)(?: is|'s)?(?:n't| not) (?:the|a|how)\b",
    r"(?:this|that|it)(?:'s| is) (?:getting|going|leading) (?:\w+ )?(?:nowhere|messy|complicated|complex|out of hand)",
    "my (?:mistake|bad|earlier)",
    "i was wrong",
    "am i missing",
    (
        "(?:let me|i should|i need to) (?:reconsider|re-?examine"
        "|re-?evaluate|think again|rethink|recalculate|recompute|correct)"
    ),
    "there(?:'s| is| must be) (?:a|an|some) (?:mistake|error|contradiction|problem|issue)",
)
DOUBT_ZH = (
    "等等",
    "等一下",
    "等下",
    "等会",
    "稍等",
    "且慢",
    "慢着",
    "不对",
    "不，",
    "糟糕",
    "哎呀",
    "咦",
    "其实不",
    "不过这",
    "这不对",
    "这里有问题",
    "好像不",
    "似乎不",
    "(?:我|这里)?(?:刚才|之前|前面|好像|可能|是不是)*(?:搞错|弄错|算错|看错|想错|漏了|忽略了|有误|有问题|矛盾)",
)

# --- conclusion --------------------------------------------------------------------------------------------------
BOXED = (r"\\(?:boxed|fbox)\s*+\{(?!\s*\})", r"^[ \t]*####[ \t]*[^#\s]")
ANSWER = (
    r"\bis (?:indeed |therefore |thus )?(?:the|our) (?:final |correct )?answer\b",
    r"\bfinal (?:answer|result)\b(?! (?:should|must|needs to) be (?:in|given|written|put))",
    r"^[ \t\u3000*_#>]*+(?:the )?answer[\s*_]*[:：]",
    (
        r"\b(?:the|our|my|correct) (?:\w+ )?answer (?:is|comes|to (?:the"
        r"|this|your)|should be|must be|would be|will be|becomes|equals|:|=)"
        r"(?! (?:in (?:the )?form|of the form|something|expressed|given|written|based|either|an? (?:integer|number)\b))"
    ),
    r"^[ \t\u3000*_#>]*+(?:in conclusion|to conclude|in summary|to summari[sz]e|conclusion|summary|to sum up)\b",
    r"\bthe conclusion (?:is|would be|must be)\b",
    "(?:最终|正确)?(?:答案|最终结果)[*_ ]*(?:应该|应|就|便)?(?:是|为|：|:|等于)",
    "综上",
    "总之",
    "总结(?:一下|来说)?[，,：:]",
    r"^[ \t\u3000*_#]*+结论",
)
# A hedged sentence does not state an answer.
HEDGES = (
    r"[?？]",
    (
        r"\b(?:if|suppose|assum\w+|maybe|perhaps|might|could|possibly"
        r"|guess|not sure|unsure|unlikely|whether|unless|supposed to)\b"
    ),
    (
        r"\b(?:isn't|is not|wasn't|cannot|can't|wouldn't|should not"
        r"|shouldn't|format|put your|expect\w*|i recall|i remember)\b"
    ),
    "可能",
    "也许",
    "或许",
    "如果",
    "假设",
    "假如",
    "是否",
    "是不是",
    "不是",
    "不会是",
    "吗",
    "猜",
    "不确定",
    "好像",
    "似乎",
)

# --- how a check ends --------------------------------------------------------------------------------------------
CONFIRMS = (
    r"\bchecks? out\b",
    r"\bas expected\b",
    r"\byes[.,!]",
    r"\bsame (?:answer|result|value)\b",
    "[✓✔]",
    (
        r"\b(?:is|are|looks|seems|that's|it's|all|also) (?:indeed "
        r"|also )?(?:correct|right|true|consistent|satisfied|valid)\b"
    ),
    r"\b(?:matches|works|holds|confirmed|confirms|verified|agrees|satisfies|satisfied|consistent)\b",
    "成立",
    "正确",
    "无误",
    "一致",
    "符合",
    "吻合",
    "没错",
    "没有问题",
    "满足",
)
FAILS = (
    "≠",
    r"\\neq?\b",
    r"\bnot (?:equal|correct|right|true|consistent|satisf\w+|match\w*|an? integer|possible|hold|divisible)\b",
    r"\b(?:doesn't|does not|don't|do not|didn't) (?:match|work|hold|satisfy|equal|add up|agree|fit|check|divide)\w*",
    (
        r"\b(?:wrong|mistake|incorrect|contradict\w*|inconsistent"
        r"|error|discrepancy|fails?|conflict\w*|correction|oops)\b"
    ),
    "should (?:have been|actually be)",
    "不等",
    "不成立",
    "不正确",
    "不一致",
    "不符",
    "矛盾",
    "错误",
    "算错",
    "不对",
    "有误",
    "不满足",
)

# --- filler ------------------------------------------------------------------------------------------------------
IDLE = (
    (
        r"(?:think\w*|see(?= (?:if|how|what|whether|why|where|here)\b)|figure|break|tackle|work through|go through|take"
        r"|be careful|visuali[sz]e|solve|approach|proceed|continue|move on)\b.*"
    ),
    r"start (?:by|with) (?:understanding|reading|looking|thinking|listing)\b.*",
    r"(?:look at|understand|process|parse|do (?:this|that|it)|get started|dive|begin)\b.*",
    "this makes sense.*",
    "makes sense.*",
    (
        r"this (?:is|seems|looks) (?:\w+ )?(?:tricky|interesting|hard"
        r"|complicated|fun|tough|easy|confusing|straightforward|simple)\b.*"
    ),
    r"that (?:makes sense|helps|seems reasonable|sounds right).*",
    "here we go.*",
    "let's see",
    "interesting",
    "nice",
    "perfect",
    "cool",
)
IDLE_ZH = (
    "嗯",
    "好的?",
    "那么?",
    "首先",
    "现在",
    "哦",
    "让?我们?",
    "来",
    "需要",
    "先",
    "仔细",
    "想想",
    "想一想",
    "思考一?下?",
    "看看",
    "看一下",
    "这个问题",
    "这道题",
    "题目",
    "有点",
    "复杂",
    "有意思",
    "分析",
    "一步步",
    "一步一步",
    "慢慢",
    "理解",
    r"[，,。.！!…\s：:]",
)
