"""The language codes of multilingual data sets, as the names of their tasks contain them."""


def _codes(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# 101 languages, six of which also in Latin script, and "und": pages whose language the detector
# CLD3 could not determine.
MC4_LANGUAGES = _codes(
    "af am ar az be bg bg-Latn bn ca ceb co cs cy da de el el-Latn en eo es et eu fa fi fil fr fy "
    "ga gd gl gu ha haw hi hi-Latn hmn ht hu hy id ig is it iw ja ja-Latn jv ka kk km kn ko ku ky "
    "la lb lo lt lv mg mi mk ml mn mr ms mt my ne nl no ny pa pl ps pt ro ru ru-Latn sd si sk sl "
    "sm sn so sq sr st su sv sw ta te tg th tr uk und ur uz vi xh yi yo zh zh-Latn zu"
)
XNLI_LANGUAGES = _codes("ar bg de el en es fr hi ru sw th tr ur vi zh")
PAWS_LANGUAGES = _codes("de en es fr ja ko zh")
XQUAD_LANGUAGES = _codes("ar de el en es hi ru th tr vi zh")
MLQA_LANGUAGES = _codes("ar de en es hi vi zh")
TYDI_LANGUAGES = _codes("ar bn en fi id ko ru sw te")
WIKIANN_LANGUAGES = _codes(
    "af ar bg bn de el en es et eu fa fi fr he hi hu id it ja jv ka kk ko ml mr ms my nl pt ru sw "
    "ta te th tl tr ur vi yo zh"
)
