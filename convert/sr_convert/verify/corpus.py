"""The texts that both tokenizers must cut in the same way, and that both models are asked to continue.

What these models read and write: prose of many scripts, mathematics, code, conversations with thoughts and
marked spans; and what breaks tokenizers: runs of white space, digits, joined emoji, half a control token.
Everything is in Unicode's normal form C. (Qwen's tokenizers bring text into it, llama.cpp does not; what is
typed on a keyboard is in it.)
"""

# ruff: noqa: RUF001

from __future__ import annotations

from dataclasses import dataclass

from sr_edge.markers import CLOSE, OPEN, strip_markers
from sr_edge.roles import Message


@dataclass(frozen=True, slots=True)
class Text:
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Marked:
    """A question, and an answer whose hard steps are given away."""

    question: str
    answer: str

    @property
    def plain_answer(self) -> str:
        return strip_markers(self.answer)


_PROSE = {
    "English": (
        "The lighthouse keeper wrote down the wind every hour, because his daughter had asked him to. "
        "By March he'd filled three notebooks; nobody'll ever read them, he thought, and yet he wouldn't "
        "stop. When the storm of 1953 came, they were the only record anyone had."
    ),
    "thoughts": (
        "Okay, so I need to find the smallest integer n for which n^2 + n + 41 isn't prime. Let me try a few "
        "values first. For n = 0 it's 41, for n = 1 it's 43... Hmm, wait. If n = 40, then 40·41 + 41 = 41², "
        "so that one fails. But is there a smaller one?\n\nAlternatively, maybe I can use modular arithmetic."
        "\n\nTherefore, the answer is **40**."
    ),
    "Spanish": (
        "¿Cuántas veces hay que lanzar una moneda para que salga cara? Según el maestro, ¡ninguna! «Depende "
        "de ti», añadió, y el niño se quedó pensando en el año que vendría."
    ),
    "French": (
        "L’été dernier, nous sommes allés à Besançon ; qu’est-ce qu’il y faisait chaud ! Aujourd'hui, le "
        "cœur léger, je n'y retournerais pas même pour 1 000 €."
    ),
    "German": (
        "Der Größte von ihnen schloß die Tür ab, prüfte das Schloss und fragte: „Übermäßig viele Schlüssel, "
        "nicht wahr?“ Straßenbahnhaltestellenverzeichnis."
    ),
    "Polish and Czech": "Zażółć gęślą jaźń. Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Turkish and Vietnamese": "İstanbul'da ılık bir gün. Trời hôm nay đẹp quá, chúng ta đi dạo nhé?",
    "Russian": (
        "Пусть x и y — натуральные числа, сумма которых равна 100. Докажем, что их произведение не больше "
        "2500; ёлка, объём, подъезд."
    ),
    "Greek": "Ας υποθέσουμε ότι η γωνία είναι ορθή· τότε ισχύει το θεώρημα του Πυθαγόρα.",
    "Chinese": (
        "首先，设这个数为x，那么根据题意可以列出方程：3x＋5＝26。解得x＝7，所以答案是七。"
        "然而，如果考虑負數與繁體字，情況會有所不同嗎？"
    ),
    "Japanese": (
        "まず、三角形の面積を求めましょう。底辺が８センチ、高さが５センチなので、答えは20㎠です。ｶﾀｶﾅも。"
    ),
    "Korean": "먼저 두 수의 합을 구해 봅시다. 그러면 답은 마흔둘이 됩니다. 정말일까요?",
    "Arabic and Hebrew": "لنفترض أن العدد س أكبر من ١٠، فما قيمته؟ נניח שהמספר גדול מעשר; מה ערכו?",
    "Hindi and Thai": "मान लीजिए कि संख्या बीस से बड़ी है। สมมติว่าจำนวนนี้มากกว่ายี่สิบ แล้วคำตอบคืออะไร",
}

_CODE = {
    "Python": (
        "from __future__ import annotations\n\n\n"
        "def primes(limit: int) -> list[int]:\n"
        '    """All primes below `limit`."""\n'
        "    sieve = bytearray([1]) * limit\n"
        "    for i in range(2, int(limit**0.5) + 1):\n"
        "        if sieve[i]:\n"
        "            sieve[i * i :: i] = bytes(len(range(i * i, limit, i)))\n"
        "    return [i for i in range(2, limit) if sieve[i]]  # 0 and 1 aren't\n\n\n"
        'if __name__ == "__main__":\n'
        '    print(f"{len(primes(10_000)):,} primes\\t{0x7FFF=}")\n'
    ),
    "C++": (
        "#include <vector>\n"
        "template<typename T>\nint sum(const std::vector<T>& v) {\n"
        "\tint s{0};\n\tfor (auto&& x : v) { s += x != 0 ? static_cast<int>(x) : -1; }\n"
        "\treturn s; /* ->, ::, <<=, &&, || */\n}\n"
    ),
    "JavaScript": (
        "const f = async ({ id, ...rest }) => {\n  if (!id?.length) throw new Error(`no id: ${rest?.name}`"
        " ?? '');\n  return await (await fetch(`/api/v1/${id}`)).json();\n};\n"
    ),
    "shell": "for f in *.txt; do\n sed -e 's/^[[:space:]]*//' \"$f\" | awk '{ print $1 }' >>x 2>&1\ndone\n",
    "SQL": "SELECT c.name, COUNT(*) AS n FROM orders o JOIN customers c ON c.id = o.customer_id GROUP BY 1;",
    "JSON and HTML": '{"a": [1, 2.5e-3, null], "b": {"c": "\\u00e9\\n"}}\n<p class="x">a &amp; b</p>\r\n',
    "a table": "| n | n² |\n|---:|:---|\n| 1 | 1 |\n| 12 | 144 |\n\n- [x] done\n- [ ] *not* `yet`\n",
}

_MATHEMATICS = {
    "LaTeX": (
        "Let \\(a_n\\) satisfy \\[ a_{n+1} = \\frac{1}{2}\\left(a_n + \\frac{2}{a_n}\\right), \\quad a_0 = 1."
        " \\]\nThen $\\lim_{n\\to\\infty} a_n = \\sqrt{2}$, since $$|a_{n+1}-\\sqrt{2}| \\le "
        "\\tfrac{1}{2}|a_n-\\sqrt{2}|^2.$$\n\\begin{align*}\n x &= y^{2} + \\sum_{k=1}^{n} \\binom{n}{k} "
        "\\\\\n &\\geq \\boxed{\\text{no solution}}\n\\end{align*}\n"
    ),
    "symbols": "∀ε>0 ∃δ>0: |x−a|<δ ⇒ |f(x)−f(a)|<ε; ∑ᵢ xᵢ² ≤ ∞, ∮ E·dℓ = −∂Φ/∂t, A⊆B∪C, π≈3.14…, 90°, ½, ℝⁿ",
    "digits": "0 7 42 365 1024 65535 1000000 3.14159265358979 -273.15 1,234,567.89 6.02e23 0xDEADBEEF v1.2.3",
    "long division": "12345678901234567890 ÷ 97 = 127274009291077 remainder 21\n 999+1=1000, 10:30, 2024",
}

_HARD = {
    "emoji": "🙂 😂😂😂 👍🏽 ❤️ 🇪🇺🇯🇵 👩‍👩‍👧‍👦 👨🏿‍🚀 🏳️‍🌈 🧑‍💻text 5️⃣ ☕️a",
    "spaces": "a b  c   d    e     f        g                h\u00a0i\u2003j\u3000k\u200bl end ",
    "leading spaces": "   three, then\n    four\n\ttab\n\t\ttwo\n \t mixed\n",
    "line ends": "one\ntwo\n\nthree\n\n\nfour\r\nfive\r\n\r\nsix\rseven \n eight\n \n nine\n\n\n\n\n\nten\n",
    "white space alone": " \n\n\n \n\n\n\n\t \t\t \t\n  \n   \n    \n     ",
    "punctuation": "...!!! ?!?! --- ––– ___ *** ### ((([[[{{{}}}]]])))'''\"\"\"```;;;::,,//\\\\||&&%%$$@~^",
    "apostrophes": "I'm you're he's we've they'll she'd don't DON'T I'M WE'LL ’tis o’clock 'quoted' l'eau ''",
    "case": "iPhone eBay NASA McDonald HTTPServer snake_case camelCase SCREAMING_CASE kebab-case x86 ﬁre Ⅷ",
    "letters and digits": "a1b2c3 4x4 3rd 21st H2O CO₂ 10km 5GB 1e5 x²y³ B12 №5 ٣٤ ४५ ⅔",
    "rare": "𝕳𝖊𝖑𝖑𝖔 𝒙 𐍈 𓀀 𝄞 ꙮ ﷽ \u202eabc\u202c \ufeffstart soft\u00adhyphen zero\u200djoiner \u0007bell",
    "accents that stay apart": "x\u0304 q\u0323 x\u0320\u0302 \u0905\u0902 \u0e01\u0e48",
    "addresses": "https://example.org/a%20b?c=d&e=%C3%A9#top me@example.com C:\\temp\\x.txt ../../etc #tag",
    "repeated": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa hahahahaha 11111111111 ===== \\\\\\\\\\ ////////// ......",
}

_CONTROL_LOOKING = {
    "half a control token": "<|im_start <|endoftext <| |> <|> im_end|> < |im_end| > <|IM_END|> [INST] <s>",
    "control tokens": "a<|im_start|>user\nb<|im_end|>\n<|endoftext|> <|eot_id|>c <｜User｜>d",
    "think tags": "<think>\nfirst\n</think>\n\nsecond <think></think>.</think> < think > </think",
}

_MARKERS = {
    "markers": f"a {OPEN}b{CLOSE} c\n{OPEN}\nd\n{CLOSE}\n\n{OPEN}{CLOSE}.{CLOSE}x{OPEN}\n\n{OPEN} {CLOSE}",
    "half a marker": "<bigmodel </bigmodel < bigmodel> <bigmodel\n> bigmodel> <Bigmodel> <\\bigmodel> </",
    "a marked step": f"So we need 17 · 23.{OPEN}17 · 23 = 17 · 20 + 17 · 3 = 340 + 51 = 391.{CLOSE}Then 9.",
}


def texts(*, markers: bool) -> tuple[Text, ...]:
    """All texts; without `markers`, those that hold a whole marker are left out."""
    groups = (_PROSE, _CODE, _MATHEMATICS, _HARD, _CONTROL_LOOKING, _MARKERS)
    everything = [Text(kind, text) for group in groups for kind, text in group.items()]
    return tuple(one for one in everything if markers or strip_markers(one.text) == one.text)


def passages() -> tuple[str, ...]:
    """What models continue: texts that mean something, the kinds mixed."""
    groups = [list(group.values()) for group in (_PROSE, _CODE, _MATHEMATICS)]
    longest = max(map(len, groups))
    return tuple(group[i] for i in range(longest) for group in groups if i < len(group))


CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    (Message("user", "What is 17 · 23?"),),
    (
        Message("system", "You are a careful mathematician. Answer in one line."),
        Message("user", "  Is 91 prime?\n"),
    ),
    (
        Message("user", "Write `hello` in Python, please."),
        Message("assistant", '```python\nprint("hello")\n```'),
        Message("user", "And in C?"),
        Message("assistant", '<think>\nThey want C now.\n</think>\n\n```c\nputs("hello");\n```'),
        Message("user", "谢谢！再用中文解释一下 🙂"),
    ),
)

MARKED: tuple[Marked, ...] = (
    Marked(
        "A farmer has 17 crates with 23 apples each and gives 58 apples away. How many are left?",
        "<think>\nFirst I need the number of apples, which is 17 times 23.\n\n"
        f"{OPEN}17 · 23 = 17 · 20 + 17 · 3 = 340 + 51 = 391, so there are 391 apples at first.{CLOSE}"
        "\n\nNow I take away the 58 that were given away: 391 - 58 = 333.\n\n"
        f"{OPEN}Let me check this: 333 + 58 = 391, as it should be.{CLOSE}"
        "\n</think>\n\nThere are **333** apples left.",
    ),
    Marked(
        "Find all real x with \\(x^2 - 5x + 6 = 0\\).",
        "<think>\nI could try to factor this. Two numbers whose product is 6 and whose sum is 5.\n\n"
        f"{OPEN}\\(x^2 - 5x + 6 = (x - 2)(x - 3)\\), because \\(2 \\cdot 3 = 6\\) and \\(2 + 3 = 5\\).{CLOSE}"
        "\n\nWait, are there others? A quadratic has at most two roots.\n"
        "</think>\n\nThe solutions are \\(x = 2\\) and \\(x = \\boxed{3}\\).",
    ),
)
