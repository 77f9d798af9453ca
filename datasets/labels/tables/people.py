"""Texts of a list that seem to name a person: common given and family names, initials, titles.

Names cannot be listed in full. The commonest of the languages that hospitals' lists are kept in are here, so that a
column called `class` which holds persons is left out even where they recur as classes do. What is taken is always
noted.
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

# Without names that are words of medicine or of colours, places and months too (Iris, Rose, May, Florence, Grace).
_GIVEN = (
    "james john robert michael william david richard christopher daniel matthew anthony donald steven andrew "
    "kenneth joshua kevin brian george edward ronald timothy jason jeffrey ryan jacob gary nicholas eric stephen "
    "jonathan larry justin scott brandon benjamin samuel gregory patrick jack dennis jerry tyler aaron henry peter "
    "adam zachary walter harold jeremy ethan noah liam oliver lucas mary patricia jennifer linda elizabeth barbara "
    "susan jessica sarah karen lisa nancy betty sandra margaret ashley kimberly emily donna michelle amanda "
    "melissa deborah stephanie rebecca laura sharon cynthia kathleen amy angela shirley anna brenda pamela emma "
    "nicole helen samantha katherine christine debra rachel carolyn janet catherine maria maría heather diane ruth "
    "julie olivia joyce kelly lauren christina joan evelyn judith megan anne jane jean doris hans klaus jürgen juergen "
    "wolfgang karl horst manfred dieter günter guenter günther helmut gerhard bernd uwe stefan andreas markus "
    "matthias sebastian tobias florian lukas felix moritz jonas franz josef johann friedrich heinrich hermann kurt "
    "ernst fritz ursula monika petra sabine renate helga karin brigitte ingrid erika andrea gisela claudia susanne "
    "gabriele christa heike kerstin katrin katharina julia lena hannah johanna sophie luise elke ute silke anja "
    "tanja birgit sepp jean-luc pierre michel andré andre philippe alain jacques françois francois christophe "
    "nicolas laurent julien antoine guillaume olivier étienne etienne louis hugo mathieu thierry yves rené "
    "nathalie isabelle sylvie françoise francoise valérie valerie monique céline celine chantal camille chloé "
    "chloe manon élodie elodie aurélie aurelie juan josé jose antonio manuel  luis javier carlos jesús "
    "jesus miguel ángel angel rafael pedro pablo sergio jorge alberto fernando diego carmen josefa isabel dolores "
    "pilar teresa cristina marta lucía lucia paula elena sofía sofia rosario guadalupe giuseppe giovanni mario "
    "luigi francesco angelo vincenzo pietro salvatore carlo franco domenico paolo marco matteo alessandro davide "
    "lorenzo giulia francesca chiara martina valentina alessia giorgia paola rosa giovanna johannes cornelis "
    "hendrik willem gerrit pieter jeroen sander joris bram daan anouk sanne femke marieke joão joao paulo ricardo "
    "beatriz piotr krzysztof andrzej tomasz paweł pawel michał michal wojciech stanisław stanislaw katarzyna "
    "małgorzata malgorzata agnieszka magdalena joanna ivan sergei sergey dmitri dmitry alexei vladimir natalia "
    "olga tatiana svetlana irina mehmet mustafa ahmet hüseyin hasan ibrahim mohammed muhammad mohamed ahmed omar "
    "fatima fatma ayşe ayse zeynep aisha lars erik anders björn bjorn sven nils иван пётр петр сергей александр "
    "дмитрий алексей владимир андрей николай мария анна елена ольга наталья татьяна γιώργος γιάννης δημήτρης μαρία "
    "ελένη κώστας νίκος محمد أحمد علي فاطمة عائشة حسن حسين يوسف مريم"
)
GIVEN = frozenset(unicodedata.normalize("NFC", _GIVEN).split())
# Given names that stand in diseases, signs and abbreviations too: names only beside a common family name.
_EITHER = (
    "ali ana max tim jan sem rui alexander joseph bernard ludwig martin charles marie "
    "christian werner otto heinz sara lea ann ewa luca alice ida carol virginia thomas"
)
EITHER = GIVEN | frozenset(_EITHER.split())
# Alone a family name may be a sign, a fracture or a stage (Weber, Smith), so all values of a column have to be some.
_FAMILY = (
    "smith johnson williams jones miller davis wilson anderson taylor thomas moore jackson martin lee thompson "
    "harris clark lewis robinson walker hall allen king wright scott hill adams baker nelson carter mitchell "
    "roberts turner phillips campbell parker evans edwards collins doe müller mueller schmidt schneider fischer "
    "weber meyer meier maier mayer wagner becker schulz schulze hoffmann schäfer schaefer koch bauer richter wolf "
    "schröder schroeder neumann zimmermann krüger krueger hofmann hartmann schmitt werner krause lehmann schmid "
    "köhler koehler herrmann könig koenig walter huber kaiser fuchs peters scholz möller moeller hahn vogel "
    "friedrich keller günther frank berger winkler beck lorenz baumann franke albrecht bernard dubois durand leroy "
    "moreau simon laurent lefebvre michel garcia garcía bertrand vincent fournier morel girard dupont lambert "
    "bonnet rousseau martinez martínez lopez lópez gonzalez gonzález rodriguez rodríguez fernandez fernández "
    "sanchez sánchez perez pérez gomez gómez ruiz hernandez hernández diaz díaz moreno romero alonso torres "
    "ramirez ramírez rossi russo ferrari esposito bianchi romano colombo ricci marino greco bruno gallo conti "
    "costa giordano mancini rizzo lombardi moretti jansen janssen bakker visser smit boer mulder bos vos silva "
    "santos oliveira souza pereira ferreira nowak kowalski wiśniewski wójcik kowalczyk ivanov petrov smirnov "
    "nguyen yilmaz yılmaz chen wang zhang patel singh kumar khan hansen johansson andersson nielsen larsen olsen "
    "pedersen"
)
FAMILY = frozenset(unicodedata.normalize("NFC", _FAMILY).split())
_PART = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
_UPPER = r"[A-ZÀ-ÖØ-ÞА-ЯΑ-Ω]"
_NAME = rf"{_UPPER}[\w'’-]+"
_TITLES = (
    r"(?:Drs?|Dra|Prof|Mr|Mrs|Ms|Herrn?|Frau|Mme|Mlle|Monsieur|Madame|Sra|Srta|Señora?|Doña|Dott|Signora?|Dhr|Mevr|"
    r"Mevrouw|Meneer|Pani|pt|г-н|г-жа)\b(?:\.:?|:?(?=\s))|(?:Hr|Hrn|Fr|Sr|Sig|Sig\.ra|Dott\.ssa|[Pp]at)\.:?"
)
# In any case, before a known name.
_SPOKEN = frozenset(["dr", "prof", "herr", "frau", "mr", "mrs", "ms", "mme", "patient", "patientin"])
_TITLED = re.compile(rf"(?<!\w)(?:{_TITLES})\s*{_UPPER}[^\W\d_]")
# 'A. Huber', 'Huber A.', 'Huber, A'; but 'M. Crohn', 'L. Lung', 'N. Vagus', 'V. Cava' are none.
_INITIALS = re.compile(
    rf"(?![MLRNV]\. )(?:{_UPPER}\.[ -]?){{1,2}}{_NAME}|{_NAME},? (?:{_UPPER}\.[ -]?){{1,2}}|{_NAME}, {_UPPER}"
)


def speaks_of_person(text: str) -> bool:
    """Whether a text holds a title before a name, initials with a name, or a common given name beside another word."""
    text = unicodedata.normalize("NFC", text)
    if _TITLED.search(text) or _INITIALS.fullmatch(text.strip()):
        return True
    parts = _PART.findall(text.replace("_", " "))
    low = [part.lower() for part in parts]
    if any(_are_name(first, second) or _are_name(second, first) for first, second in pairwise(low)):
        return True
    if any(len(first) == 1 or first in _SPOKEN for first, second in pairwise(low) if second in FAMILY):
        return True
    capitals = [part.lower() for part in parts if part[0] != part[0].lower() or part.upper() == part.lower()]
    return len(capitals) > 1 and not GIVEN.isdisjoint(capitals)


def _are_name(given: str, family: str) -> bool:
    return given in EITHER and family in FAMILY


def are_persons(texts: Sequence[str]) -> bool:
    """Whether two distinct texts or more are names and nothing else, such as those who have read the scans."""
    names = [unicodedata.normalize("NFC", text).strip().lower() for text in texts]
    return len(names) > 1 and all(name in FAMILY or name in EITHER for name in names)
