"""What LaTeX commands look like as characters: tables for `latex`."""

# ruff: noqa: RUF001  (mathematics is full of characters that look like letters)

from __future__ import annotations

import re

SYMBOLS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "zeta": "ζ", "eta": "η",
    "theta": "θ", "iota": "ι", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ",
    "omicron": "ο", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "upsilon": "υ", "phi": "φ",
    "chi": "χ", "psi": "ψ", "omega": "ω", "varepsilon": "ε", "vartheta": "ϑ", "varphi": "φ",
    "varrho": "ϱ", "varsigma": "ς", "varpi": "ϖ", "Gamma": "Γ", "Delta": "Δ", "Theta": "Θ",
    "Lambda": "Λ", "Xi": "Ξ", "Pi": "Π", "Sigma": "Σ", "Upsilon": "Υ", "Phi": "Φ", "Psi": "Ψ",
    "Omega": "Ω", "cdot": "·", "ast": "*", "star": "⋆", "circ": "∘", "bullet": "•", "infty": "∞",
    "partial": "∂", "nabla": "∇", "forall": "∀", "exists": "∃", "nexists": "∄", "emptyset": "∅",
    "varnothing": "∅", "neg": "¬", "lnot": "¬", "angle": "∠", "triangle": "△", "degree": "°",
    "prime": "′", "hbar": "ℏ", "ell": "ℓ", "Re": "ℜ", "Im": "ℑ", "aleph": "ℵ", "dots": "…",
    "ldots": "…", "cdots": "⋯", "dotsc": "…", "dotsb": "⋯", "vdots": "⋮", "ddots": "⋱", "square": "□",
    "Box": "□", "blacksquare": "■", "qed": "∎", "checkmark": "✓", "dagger": "†", "sum": "∑",
    "prod": "∏", "coprod": "∐", "int": "∫", "iint": "∬", "iiint": "∭", "oint": "∮", "bigcup": "⋃",
    "bigcap": "⋂", "bigoplus": "⨁", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉",
    "langle": "⟨", "rangle": "⟩", "lvert": "|", "rvert": "|", "lVert": "‖", "rVert": "‖", "vert": "|",
    "Vert": "‖", "|": "‖", "lbrace": "{", "rbrace": "}", "lbrack": "[", "rbrack": "]",
    "backslash": "\\", "therefore": "∴", "because": "∵", "colon": ":", "lt": "<", "gt": ">", "top": "⊤",
    "bot": "⊥", "imath": "ı", "jmath": "ȷ", "surd": "√", "pounds": "£", "euro": "€", "copyright": "©",
    "P": "¶", "S": "§",
}  # fmt: skip

INFIX = {
    "le": "≤", "leq": "≤", "leqslant": "≤", "ge": "≥", "geq": "≥", "geqslant": "≥", "ne": "≠",
    "neq": "≠", "approx": "≈", "equiv": "≡", "sim": "∼", "simeq": "≃", "cong": "≅", "propto": "∝",
    "ll": "≪", "gg": "≫", "subset": "⊂", "subseteq": "⊆", "supset": "⊃", "supseteq": "⊇", "in": "∈",
    "notin": "∉", "ni": "∋", "mid": "∣", "nmid": "∤", "parallel": "∥", "perp": "⊥", "to": "→",
    "rightarrow": "→", "longrightarrow": "⟶", "leftarrow": "←", "gets": "←", "leftrightarrow": "↔",
    "Rightarrow": "⇒", "implies": "⟹", "Leftarrow": "⇐", "Leftrightarrow": "⇔", "iff": "⟺",
    "mapsto": "↦", "coloneqq": "≔", "models": "⊨", "vdash": "⊢", "prec": "≺", "succ": "≻",
    "Longrightarrow": "⟹", "hookrightarrow": "↪", "times": "×", "div": "÷", "pm": "±", "mp": "∓",
    "cup": "∪", "cap": "∩", "setminus": "∖", "wedge": "∧", "land": "∧", "vee": "∨", "lor": "∨",
    "oplus": "⊕", "otimes": "⊗",
}  # fmt: skip
"""With a space at either side."""

SPACES = {
    ",": " ", ":": " ", ";": " ", "!": "", " ": " ", ">": " ", "quad": "  ", "qquad": "    ",
    "enspace": " ",
}  # fmt: skip

ACCENTS = {
    "overline": "\u0305", "bar": "\u0304", "hat": "\u0302", "widehat": "\u0302", "tilde": "\u0303",
    "widetilde": "\u0303", "vec": "\u20d7", "overrightarrow": "\u20d7", "dot": "\u0307",
    "ddot": "\u0308", "underline": "\u0332", "check": "\u030c", "acute": "\u0301", "grave": "\u0300",
}  # fmt: skip
"""Combining, after each character."""

FUNCTIONS = re.compile(
    "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|lg|exp|lim|limsup|liminf|max|"
    "min|sup|inf|det|dim|ker|gcd|lcm|arg|deg|hom|Pr|mod"
)
"""Written as they are called."""

NOTHING = re.compile(
    "displaystyle|textstyle|scriptstyle|limits|nolimits|nonumber|notag|centering|hfill|noindent|"
    "boldmath|hline|allowbreak"
)
"""How it is set, not what it says."""

DELIMITER = re.compile("left|right|middle|[bB]igg?[lrm]?")
"""A parenthesis follows, or a point for none."""

WORDS = re.compile("text|textbf|textit|textrm|textsf|texttt|textnormal|mbox|hbox|emph|operatorname|tag")
"""Their argument is words, not a formula."""

UPRIGHT = re.compile(
    "mathrm|mathbf|mathit|mathsf|mathtt|mathnormal|boldsymbol|bm|underbrace|overbrace|mathop|mathrel|"
    "mathbin|cancel"
)
"""Another typeface: nothing changes here."""

DOUBLE = {
    "C": "ℂ", "H": "ℍ", "N": "ℕ", "P": "ℙ", "Q": "ℚ", "R": "ℝ", "Z": "ℤ", "1": "𝟙",
}  # fmt: skip

SCRIPT = {
    "B": "ℬ", "E": "ℰ", "F": "ℱ", "H": "ℋ", "I": "ℐ", "L": "ℒ", "M": "ℳ", "R": "ℛ", "e": "ℯ", "g": "ℊ",
    "o": "ℴ", "l": "ℓ",
}  # fmt: skip

SUPER = {
    "0": "⁰", "1": "¹", "2": "²", "3": "³", "4": "⁴", "5": "⁵", "6": "⁶", "7": "⁷", "8": "⁸", "9": "⁹",
    "+": "⁺", "-": "⁻", "−": "⁻", "=": "⁼", "(": "⁽", ")": "⁾", "a": "ᵃ", "b": "ᵇ", "c": "ᶜ", "d": "ᵈ",
    "e": "ᵉ", "f": "ᶠ", "g": "ᵍ", "h": "ʰ", "i": "ⁱ", "j": "ʲ", "k": "ᵏ", "l": "ˡ", "m": "ᵐ", "n": "ⁿ",
    "o": "ᵒ", "p": "ᵖ", "r": "ʳ", "s": "ˢ", "t": "ᵗ", "u": "ᵘ", "v": "ᵛ", "w": "ʷ", "x": "ˣ", "y": "ʸ",
    "z": "ᶻ", "A": "ᴬ", "B": "ᴮ", "D": "ᴰ", "E": "ᴱ", "G": "ᴳ", "H": "ᴴ", "I": "ᴵ", "J": "ᴶ", "K": "ᴷ",
    "L": "ᴸ", "M": "ᴹ", "N": "ᴺ", "O": "ᴼ", "P": "ᴾ", "R": "ᴿ", "T": "ᵀ", "U": "ᵁ", "V": "ⱽ", "W": "ᵂ",
    "α": "ᵅ", "β": "ᵝ", "γ": "ᵞ", "δ": "ᵟ", "ε": "ᵋ", "θ": "ᶿ", "ι": "ᶥ", "φ": "ᵠ", "χ": "ᵡ", "′": "′",
    "∘": "°", "*": "*",
}  # fmt: skip

SUB = {
    "0": "₀", "1": "₁", "2": "₂", "3": "₃", "4": "₄", "5": "₅", "6": "₆", "7": "₇", "8": "₈", "9": "₉",
    "+": "₊", "-": "₋", "−": "₋", "=": "₌", "(": "₍", ")": "₎", "a": "ₐ", "e": "ₑ", "h": "ₕ", "i": "ᵢ",
    "j": "ⱼ", "k": "ₖ", "l": "ₗ", "m": "ₘ", "n": "ₙ", "o": "ₒ", "p": "ₚ", "r": "ᵣ", "s": "ₛ", "t": "ₜ",
    "u": "ᵤ", "v": "ᵥ", "x": "ₓ", "β": "ᵦ", "γ": "ᵧ", "ρ": "ᵨ", "φ": "ᵩ", "χ": "ᵪ",
}  # fmt: skip

ROOTS = {"2": "√", "3": "∛", "4": "∜"}

BRACKETS = {
    "pmatrix": ("(⎛⎜⎝", ")⎞⎟⎠"),
    "bmatrix": ("[⎡⎢⎣", "]⎤⎥⎦"),
    "vmatrix": ("||||", "||||"),
    "Vmatrix": ("‖‖‖‖", "‖‖‖‖"),
    "cases": ("{⎧⎨⎩", ""),
}
"""At the left and at the right: of one row; of the first, of one between, of the last."""
