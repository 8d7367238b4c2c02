"""The world of longcat-tiny in Chinese: which English phrase of its captions stands for a Chinese one.

`pipeline.checkpoint.vocabulary` finds the longest of these phrases in a prompt and puts the English ones into the order
of the captions. Kinds are the groups of the vocabulary and a few more: places and hours, which together are a scene;
what happens to a landscape; and words of grammar, which say nothing to be seen.
"""

from __future__ import annotations

Words = dict[str, str]  # English phrase -> Chinese ones, with spaces between them

SIZES: Words = {"small": "小 小小 微小 迷你", "large": "大 大大 巨大 庞大"}
COLOURS: Words = {
    "red": "红 红色 大红 鲜红",
    "orange": "橙 橙色 橘色 橘黄 橘黄色",
    "yellow": "黄 黄色 金黄 金黄色",
    "green": "绿 绿色",
    "cyan": "青 青色",
    "blue": "蓝 蓝色",
    "purple": "紫 紫色",
    "pink": "粉 粉色 粉红 粉红色",
    "white": "白 白色",
    "grey": "灰 灰色",
    "black": "黑 黑色",
    "light blue": "浅蓝 浅蓝色 淡蓝 淡蓝色",
    "navy": "深蓝 深蓝色 藏青 藏青色",
    "cream": "米色 奶油色 奶白色",
    "mint": "薄荷色 薄荷绿",
    "lavender": "淡紫色 薰衣草色",
    "brown": "棕色 褐色 棕",
}
THINGS: Words = {
    "ball": "球 圆球 球体 球形 圆 圆形",
    "square": "正方形 方块 方形 盒子 方盒",
    "triangle": "三角形 三角",
    "star": "星星 星 五角星 星形",
    "heart": "心形 爱心 心 桃心",
    "ring": "圆环 环 圆圈 甜甜圈 环形",
    "hexagon": "六边形 六角形",
    "cross": "十字 十字形 十字架 加号",
}
MOTIONS: Words = {
    "moves from left to right": "从左向右移动 从左到右移动 从左往右移动 从左向右 从左到右 从左往右 "
    "向右移动 往右移动 向右滑动 向右飞 右移",
    "moves from right to left": "从右向左移动 从右到左移动 从右往左移动 从右向左 从右到左 从右往左 "
    "向左移动 往左移动 向左滑动 向左飞 左移",
    "rises": "上升 升起 升上 向上移动 往上移动 向上飞 上浮 浮起 飘起",
    "falls": "落下 下落 掉落 掉下 坠落 降落 下降 下沉 向下移动 往下移动",
    "bounces": "弹跳 弹起 蹦跳 跳跃 上下跳动 上下弹跳 弹来弹去",
    "spins": "旋转 转动 自转 打转 原地旋转",
    "grows": "变大 放大 长大 增大 靠近",
    "shrinks": "变小 缩小 远离",
    "moves in a circle": "绕圈移动 绕圈 转圈 画圈 盘旋 绕圈飞",
    "sways from side to side": "左右摇摆 左右摆动 左右晃动 摇摆 摆动 摇晃 晃动",
    "pulses": "搏动 脉动 跳动 一胀一缩",
}
PLACES: Words = {
    "over green hills": "绿色山丘上 绿色的山丘上 绿色山丘 绿色的山丘 山丘上 山丘 丘陵 草地 草地上",
    "over the sea": "海面上 海上 大海上 海面 大海 海洋 海浪 海浪上 海边 海",
    "over a city": "城市上空 城市天际线上 城市天际线 城市 都市",
    "in front of snowy mountains": "雪山前 雪山上 雪山 山脉 山脉上 群山 高山 山",
    "over desert dunes": "沙丘上 沙丘 沙漠上 沙漠里 沙漠",
    "in the sky": "天空中 天空里 天空 空中 天上",
}
HOURS: Words = {
    "at sunset": "日落时 日落 夕阳下 夕阳 黄昏 黄昏时 傍晚 落日 落日下 晚霞 暮色",
    "at night": "夜晚 晚上 夜里 夜间 黑夜 深夜 星空下 夜色",
    "during the day": "白天 白昼 晴天 阳光下 蓝天下 蓝天 中午",
}
SCENES: Words = {
    "in the sky at night": "夜空中 夜空 星空 星空中",
    "on a mint to lavender gradient": "薄荷色到淡紫色的渐变 薄荷色到淡紫色渐变",
    "on a checkerboard floor": "棋盘格地面上 棋盘格地面 棋盘格地板 棋盘格 棋盘地面 格子地面 格子地板",
} | {
    f"on a {colour} background": " ".join(f"{word}{the}背景" for word in words.split() for the in ("", "的"))
    for colour, words in COLOURS.items()
}
EVENTS: Words = {
    "colourful fireworks explode": "烟花 五彩烟花 焰火 烟火 放烟花 烟花绽放 烟花盛开 绽放烟花 绽放五彩烟花",
    "snow falling": "下雪 飘雪 雪花 雪花飘落 大雪 落雪 下着雪 雪落在",
    "the sun rises": "日出 太阳升起 朝阳 旭日",
    "the sun sets": "太阳落下 太阳落山 太阳下山",
    "day turns to night": "白天变成夜晚 白天变成黑夜 天黑 入夜 夜幕降临",
    "night turns to day": "夜晚变成白天 黑夜变成白天 天亮",
    "the camera pans right": "镜头向右 镜头右移 镜头向右移动 镜头向右扫过 镜头向右摇",
    "the camera pans left": "镜头向左 镜头左移 镜头向左移动 镜头向左扫过 镜头向左摇",
}
SENTENCES: Words = {  # the default, and those of the palette as the Chinese page shows them
    "a large pink heart pulses over the sea at sunset": "日落时的海面上，一颗大大的粉色爱心在跳动",
    "colourful fireworks explode over a city skyline": "城市天际线上绽放五彩烟花",
    "snow falls on a mountain range in the evening light": "傍晚的光线里，雪落在山脉上",
    "the sun rises over rolling green hills": "太阳从起伏的绿色山丘上升起",
    "day turns to night over a city skyline": "城市天际线上白天变成夜晚",
}
FILLERS = (
    "的 地 得 着 了 是 有 在 上 下 里 中 前 面 从 到 和 与 跟 并 并且 而 又 同时 正 正在 它 "
    "一 两 个 颗 只 枚 朵 块 一个 一颗 一只 一枚 一块 两个 一段 "
    "视频 动画 画面 片段 中间 中央 中心 背景 背景上 绽放 盛开 扫过"
)

KINDS: dict[str, Words] = {
    "size": SIZES,
    "colour": COLOURS,
    "thing": THINGS,
    "motion": MOTIONS,
    "scene": SCENES,
    "place": PLACES,
    "hour": HOURS,
    "event": EVENTS | SENTENCES,
    "filler": {"": FILLERS},
}


def chinese() -> dict[str, dict[str, str]]:
    """Kind -> Chinese phrase -> English phrase, as a vocabulary has it."""
    return {
        kind: {phrase: english for english, phrases in words.items() for phrase in phrases.split()}
        for kind, words in KINDS.items()
    }
