"""The words a world is dealt from: names and fact values, all plain and each in one list only.

Values start with a consonant, so that "a" fits before each. What this gives up: other languages and longer facts.
"""

from __future__ import annotations

from collections.abc import Mapping


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    """
    Ada Bruno Celia Dario Edda Felix Greta Hugo Iris Jonas Klara Lionel Mira Nico Olga Pavel Quinn Rosa Silas Tessa
    Ulrik Vera Wanda Xenia Yusuf Zelda Amos Bianca Cyrus Delia Emil Fiona Gideon Hanna Igor Judith Kasper Leona
    Magnus Nadia Oscar Petra Rufus Selma Tobias Ursula Viggo Willa Ximena Yara Zoltan Agnes Boris Cora Dunja Ezra
    Flora Gustav Helga Ivan Jolanda Kurt Lydia Milo Nora Otto Paula Ramon Sonja Theo Una Viktor
    """
)
LAST_NAMES = _words(
    """
    Abbott Brandt Castell Dumont Ekberg Farrow Galvez Hartog Ibsen Jansky Keller Lombard Moreau Novak Ostrov Pereira
    Quist Rinaldi Salgado Tanaka Ueland Varga Wexler Xander Yilmaz Zeman Aldous Bergman Corbin Draper Engel Fuchs
    Grimaldi Holm Ivers Juarez Kovac Lindgren Marlow Nyberg Oakley Pruitt Rask Sandoval Thorne Ulbrich Vance
    Whitlock Yoder Zapata Ashdown Bellamy Crane Dvorak Eastman Foss Gantz Hobart Irving Jepsen Krone Lark Mundy Nash
    Orwell Pike Rowe Stone Tully Upton Voss Wilde
    """
)
VALUES: Mapping[str, tuple[str, ...]] = {
    "city": _words(
        """
        Lisbon Prague Vienna Madrid Warsaw Dublin Bergen Turin Geneva Zagreb Helsinki Tallinn Riga Seville Munich
        Bremen Lyon Nantes Porto Krakow Ghent Malmo Tirana Sofia Valencia Genoa Kyoto Lima Quito Havana Cairo
        Nairobi Denver Boston
        """
    ),
    "job": _words(
        """
        baker carpenter dentist florist geologist hatter jeweller librarian mechanic notary painter plumber printer
        sailor surgeon tailor teacher translator waiter watchmaker welder barber beekeeper blacksmith butcher
        cashier chemist coroner courier dancer farmer fireman gardener judge
        """
    ),
    "hobby": _words(
        """
        chess fencing sailing juggling pottery knitting climbing cycling karate skiing rowing archery origami
        photography gardening baking singing surfing diving hiking running boxing bowling golf tennis darts kayaking
        yoga painting weaving sculpting poetry calligraphy snooker
        """
    ),
    "study": _words(
        """
        physics chemistry biology geology history philosophy law medicine botany zoology music theology linguistics
        geography mathematics statistics logic rhetoric mining forestry nursing dentistry pharmacy robotics theatre
        journalism politics sociology psychology genetics optics acoustics finance criminology
        """
    ),
    "pet": _words(
        """
        cat dog parrot rabbit hamster turtle goldfish canary ferret lizard snake pony goat pig hen duck goose pigeon
        mouse rat gecko frog toad newt crab snail spider beetle llama donkey sheep falcon raven hedgehog
        """
    ),
}
