"""LaTeX as Unicode: what is known is readable, what is not stays as it was written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_edge.tui.latex import MAX_LENGTH, to_unicode


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (r"\frac{1}{2}", "1/2"),
        (r"\frac12", "1/2"),
        (r"\frac{a+b}{c-d}", "(a+b)/(c−d)"),
        (r"-\frac{b}{2a}", "−b/(2a)"),
        (r"\dfrac{\sqrt{3}}{2}", "√3/2"),
        (r"x_{n+1} = x_n^2 - 4ac", "xₙ₊₁ = xₙ² − 4ac"),
        (r"e^{i\pi}", "e^(iπ)"),
        (r"x^{a_b}", "x^(a_b)"),
        (r"2^{10}=1024", "2¹⁰=1024"),
        (r"90^\circ", "90°"),
        (r"f'(x)", "f′(x)"),
        (r"\sqrt{b^2-4ac}", "√(b²−4ac)"),
        (r"\sqrt[3]{x}", "∛x"),
        (r"\sqrt[5]{x}", "⁵√x"),
        (r"\sum_{k=1}^{n} k^2", "∑ₖ₌₁ⁿ k²"),
        (r"\int_0^1 x^2\,dx", "∫₀¹ x² dx"),
        (r"\lim_{x \to 0} \frac{\sin x}{x}", "lim_(x → 0) (sin x)/x"),
        (r"7^{2024} \equiv 1 \pmod{100}", "7²⁰²⁴ ≡ 1 (mod 100)"),
        (r"a \cdot b \times c \div d", "a · b × c ÷ d"),
        (r"a\le b\neq c \implies d", "a ≤ b ≠ c ⟹ d"),
        (r"\alpha\beta\Omega", "αβΩ"),
        (r"x \in \mathbb{R}^n", "x ∈ ℝⁿ"),
        (r"\text{if } x > 0", "if x > 0"),
        (r"\mathrm{cm}^2", "cm²"),
        (r"\left( \frac{a}{b} \right)^2", "(a/b)²"),
        (r"\left. x \right|_0^1", "x |₀¹"),
        (r"\{ 1, 2 \}", "{ 1, 2 }"),
        (r"\sin\theta\cos\theta", "sin θ cos θ"),
        (r"\log_2 8", "log₂ 8"),
        (r"\bar{y}", "y\u0304"),
        (r"\binom{n}{k}", "C(n, k)"),
        (r"10{,}000 \% \$5", "10,000 % $5"),
        (r"\boxed{45}", "▣ 45"),
        (r"\boxed{\frac{3}{4}}", "▣ 3/4"),
        (r"a<b>c", "a<b>c"),
        (r"\foo{x} \bar", r"\foo{x}"),
    ],
)
def test_a_formula_is_readable(source, shown):
    assert to_unicode(source) == shown


def test_rows_stand_below_each_other():
    source = r"\begin{aligned} x &= 1 + 2 \\ &= 3 \\[2pt] yy &= 4 \end{aligned}"
    assert to_unicode(source).split("\n") == [" x = 1 + 2", "   = 3", "yy = 4"]


def test_matrices_and_cases_have_brackets():
    assert to_unicode(r"\begin{pmatrix} 1 & 22 \\ 333 & 4 \end{pmatrix}").split("\n") == [
        "⎛ 1    22 ⎞",
        "⎝ 333  4  ⎠",
    ]
    cases = r"f(x) = \begin{cases} x & x > 0 \\ -x & \text{otherwise} \end{cases}"
    assert to_unicode(cases).split("\n") == ["f(x) = ⎧ x   x > 0", "       ⎩ −x  otherwise"]


def test_what_is_too_long_or_too_deep_stays_as_it_was_written():
    for source in ("x" * (MAX_LENGTH + 1), "{" * 500 + "x" + "}" * 500, r"\sqrt" * 500, r"\text{\text" * 300):
        assert to_unicode(source) == source


@given(st.text(alphabet=r"\{}[]^_&$ab1+ ", max_size=80) | st.text(max_size=40))
def test_any_text_can_be_read(source):
    assert isinstance(to_unicode(source), str)


COMMANDS = [
    r"\frac",
    r"\sqrt",
    r"\left(",
    r"\right)",
    r"\begin{cases}",
    r"\end{cases}",
    r"\text",
    r"\\",
    r"\sum",
    r"\foo",
]


@given(
    st.lists(
        st.sampled_from([*COMMANDS, "{", "}", "[", "]", "^", "_", "&", "x", "12", " ", "+"]), max_size=40
    )
)
def test_any_commands_can_be_read_and_no_figure_is_lost(pieces):
    shown = to_unicode("".join(pieces))
    small = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉", "01234567890123456789")
    kept = [char for char in shown.translate(small) if char in "12"]
    if r"\begin{cases}" not in pieces and r"\end{cases}" not in pieces and "[" not in pieces:
        assert len(kept) == 2 * pieces.count("12")
