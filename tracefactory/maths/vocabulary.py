"""Word lists of the answer grammar."""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    """Return the words of a text as a set."""
    return frozenset(text.split())


FUNCTIONS = words("""
    sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp sqrt abs floor ceil min max gcd lcm det
    asin acos atan sgn
""")
PROSE = words("""
    the is are was not can has had its we so to or of if he my you all any how who why one two six ten for yes no she
    his our out per but
""")
"""Short words that are never a product of variables."""
GREEK = words("""
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi
    omega Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega ell hbar odot prime Pi
""")
ACCENTS = words("""
    vec hat bar tilde dot ddot overline mathbb mathcal mathbf mathfrak widehat overrightarrow
""")
NOTHING = words("""
    nosolution nosolutions none norealsolution norealsolutions nosuch nosuchnumber emptyset theemptyset nullset
    doesnotexist dne nosolutionexists nosolutionsexist impossible 无解 空集 不存在 无实数解 没有解 therearenosolutions
    thereisnosolution noreal norealroots norealroot novalues novalue
""")
ALL_REALS = words("""
    allreals allrealnumbers allreal mathbbr r^1 reals realnumbers thesetofallrealnumbers anyrealnumber allrealvalues
    全体实数 任意实数 一切实数 实数集 allrealx xinmathbbr
""")
COUNTED = words("""
    way ways arrangement arrangements possibility possibilities solution solutions pair pairs number numbers time
    times value values outcome outcomes choice choices people person persons item items unit units integer integers
    total square cubic different distinct ordered more less in of the a per each possible such all about
    approximately around exactly only left altogether remaining old page pages point points object objects thing
    things years-old
    个 只 本 页 人 名 条 张 块 支 枝 棵 辆 件 次 种 倍 岁 道 题 朵 盒 袋 箱 头 把 套 台 艘 间 层 排 组 对
    双 位 颗 枚 片 瓶 杯 根 段 束 所 座 架 匹
    副 顶 筐 堆 包 册 幅 步 班 号 家 户
""")
