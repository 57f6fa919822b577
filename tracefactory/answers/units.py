"""Units of measure: English, LaTeX and Chinese names with their dimensions and exact factors.

A unit is a product of powers of base dimensions with a rational factor, so 1 km and 1000 m are the same quantity, and
5 cm and 5 m are not. Factors follow the SI brochure and the international yard and pound agreement. Each currency is
its own dimension, because answers do not involve exchange rates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from tracefactory.maths.vocabulary import COUNTED


@dataclass(frozen=True)
class Unit:
    """`factor` times the base unit of `dimension`, a sorted tuple of (base, power)."""

    dimension: tuple[tuple[str, int], ...]
    factor: Fraction

    def times(self, other: Unit, sign: int = 1) -> Unit:
        """Return the product with another unit, or with a `sign` of -1 the quotient."""
        powers = dict(self.dimension)
        for base, power in other.dimension:
            powers[base] = powers.get(base, 0) + sign * power
        kept = tuple(sorted((base, power) for base, power in powers.items() if power))
        return Unit(kept, self.factor * other.factor if sign > 0 else self.factor / other.factor)

    def power(self, exponent: int) -> Unit:
        """Return the unit to an integer power."""
        kept = tuple((base, power * exponent) for base, power in self.dimension if power * exponent)
        return Unit(kept, self.factor**exponent)


_ROWS: tuple[tuple[str, str, str], ...] = (
    ("m", "1", "m meter meters metre metres 米"),
    ("m", "1000", "km kilometer kilometers kilometre kilometres 千米 公里"),
    ("m", "1/100", "cm centimeter centimeters centimetre centimetres 厘米"),
    ("m", "1/10", "dm decimeter decimeters 分米"),
    ("m", "1/1000", "mm millimeter millimeters millimetre millimetres 毫米"),
    ("m", "1/1000000000", "nm nanometer nanometers"),
    ("m", "127/5000", "inch inches in."),
    ("m", "381/1250", "ft foot feet 英尺"),
    ("m", "1143/1250", "yd yard yards"),
    ("m", "201168/125", "mi mile miles 英里"),
    ("kg", "1", "kg kilogram kilograms kilo kilos 千克 公斤"),
    ("kg", "1/1000", "g gram grams 克"),
    ("kg", "1/1000000", "mg milligram milligrams 毫克"),
    ("kg", "1000", "ton tons tonne tonnes 吨"),
    ("kg", "1/2", "斤"),
    ("kg", "45359237/100000000", "lb lbs pound pounds"),
    ("kg", "45359237/1600000000", "oz ounce ounces"),
    ("s", "1", "s sec secs second seconds 秒 秒钟"),
    ("s", "1/1000", "ms millisecond milliseconds 毫秒"),
    ("s", "60", "min mins minute minutes 分钟"),
    ("s", "3600", "h hr hrs hour hours 小时"),
    ("s", "86400", "day days 天"),
    ("s", "604800", "week weeks wk 周 星期"),
    ("month", "1", "month months 个月"),
    ("month", "12", "year years yr yrs 年"),
    ("USD", "1", "USD dollar dollars usd 美元"),
    ("USD", "1/100", "cent cents ¢ 美分"),
    ("EUR", "1", "€ euro euros eur EUR 欧元"),
    ("GBP", "1", "£ gbp GBP quid 英镑"),
    ("CNY", "1", "¥ yuan rmb RMB CNY 元 块 人民币"),
    ("CNY", "1/10", "jiao 角"),
    ("INR", "1", "₹ rupee rupees Rs rs Rs."),
    ("JPY", "1", "yen 日元"),
    ("deg", "1", "° degree degrees deg 度"),
    ("rad", "1", "rad radian radians 弧度"),
    ("m3", "1/1000", "L l liter liters litre litres 升"),
    ("m3", "1/1000000", "mL ml milliliter milliliters millilitre millilitres 毫升"),
    ("gal", "1", "gallon gallons gal"),
    ("gal", "1/4", "quart quarts"),
    ("gal", "1/8", "pint pints"),
    ("gal", "1/16", "cup cups"),
    ("gal", "1/128", "fl_oz"),
    ("m2", "10000", "hectare hectares ha 公顷"),
    ("m2", "316160658/78125", "acre acres"),
    ("K", "1", "K kelvin kelvins"),
    ("degC", "1", "°C celsius 摄氏度"),
    ("degF", "1", "°F fahrenheit"),
    ("N", "1", "N newton newtons 牛顿"),
    ("J", "1", "J joule joules 焦耳"),
    ("J", "1000", "kJ kilojoule kilojoules"),
    ("W", "1", "W watt watts 瓦"),
    ("W", "1000", "kW kilowatt kilowatts 千瓦"),
    ("V", "1", "V volt volts 伏特"),
    ("A", "1", "A amp amps ampere amperes 安培"),
    ("Hz", "1", "Hz hertz 赫兹"),
    ("Pa", "1", "Pa pascal pascals"),
    ("mol", "1", "mol mole moles"),
    ("bit", "1", "bit bits"),
    ("bit", "8", "byte bytes"),
)


def _table() -> dict[str, Unit]:
    table: dict[str, Unit] = {}
    for base, factor, names in _ROWS:
        dimension = {"m2": (("m", 2),), "m3": (("m", 3),)}.get(base, ((base, 1),))
        for name in names.split():
            table[name] = Unit(dimension, Fraction(factor))
    table["mph"] = table["mile"].times(table["hour"], -1)
    table["kph"] = table["kmph"] = table["km"].times(table["hour"], -1)
    for chinese, unit in (("米", table["m"]), ("厘米", table["cm"]), ("分米", table["dm"]), ("千米", table["km"])):
        table[f"平方{chinese}"] = unit.power(2)
        table[f"立方{chinese}"] = unit.power(3)
    return table


UNITS = _table()
CURRENCIES = frozenset({"USD", "EUR", "GBP", "CNY", "INR", "JPY"})
_AREA = {"square": 2, "sq": 2, "sq.": 2, "cubic": 3, "cu": 3}
_POWERED = re.compile(r"(.+?)(?:\^\{?(-?\d)\}?|([23]))?")


@lru_cache(maxsize=4096)
def parse_unit(text: str) -> Unit | None:
    """Return the unit that a normalised text names, None when a word in it is not a unit."""
    text = re.sub(r"\s+per\s+|每", "/", text.strip("() "))
    text = re.sub(r"(?:degrees?|°)\s*(?=celsius|fahrenheit|C\b|F\b)", "°", text, flags=re.IGNORECASE)
    text = re.sub(r"°(celsius|fahrenheit)", lambda match: "°" + match[1][0].upper(), text, flags=re.IGNORECASE)
    above, *below = re.split(r"/", text)
    unit = _product(above)
    for part in below:
        divisor = _product(part)
        if unit is None or divisor is None:
            return None
        unit = unit.times(divisor, -1)
    return unit


def _product(text: str) -> Unit | None:
    result: Unit | None = None
    exponent = 1
    for word in re.sub(r"\s*\^", "^", text).split():
        if word.lower() in _AREA:
            exponent = _AREA[word.lower()]
            continue
        if word in ("squared", "cubed") and result is not None:
            return result.power(2 if word == "squared" else 3)
        match = _POWERED.fullmatch(word)
        if match is None:
            return None
        base = UNITS.get(match[1]) or UNITS.get(match[1].lower())
        if base is None:
            return None
        unit = base.power(int(match[2] or match[3] or 1) * exponent)
        exponent = 1
        result = unit if result is None else result.times(unit)
    return result


def noun_words(text: str) -> frozenset[str]:
    """Return the counted nouns of a label such as `81 teachers`, without endings of the plural and counting words."""
    found = set()
    for word in re.findall(r"[a-z]+(?:-[a-z]+)*|[\u4e00-\u9fff]+", text.lower()):
        if word in COUNTED or (word >= "\u4e00" and word[:1] in COUNTED):
            continue
        found.add(word.rstrip("es").rstrip("iy"))  # the same of apple and apples, glass and glasses, city and cities
    return frozenset(found)
