"""Lays out a street and paints it from far to near."""

import cv2
import numpy as np

from semidavil.toy.canvas import FAR, Canvas, log_uniform
from semidavil.toy.styles import (
    BICYCLE,
    BUILDING,
    BUS,
    CAR,
    EGO,
    FENCE,
    LIGHT,
    MOTORCYCLE,
    PERSON,
    PLATE,
    POLE,
    RIDER,
    ROAD,
    SIDEWALK,
    SIGN,
    SKY,
    TERRAIN,
    TRAIN,
    TRUCK,
    VEGETATION,
    WALL,
)


class Painter(Canvas):
    """Lays out the world, in metres, and paints it from far to near."""

    def paint(self) -> None:
        rng = self.rng
        self.road = rng.uniform(3.2, 4.8)  # half the road's width
        self.kerb = self.road + rng.uniform(2.4, 4.5)  # where the sidewalk ends
        self.verge = {  # metres of grass between sidewalk and buildings
            side: rng.uniform(2, 7) if self.chance("terrain") else 0.0 for side in (-1, 1)
        }
        self.backdrop()
        self.ground()
        things = [thing for side in (-1, 1) for thing in self.frontage(side)]
        things += self.traffic() + self.street_life()
        for _, draw in sorted(things, key=lambda thing: -thing[0]):
            draw()
        if rng.random() < 0.45:
            self.bonnet()

    def backdrop(self) -> None:
        top = self.base[SKY]
        low = np.clip(top + self.rng.uniform(0, 26), 0, 255)
        rows = np.linspace(0, 1, self.height, dtype=np.float32)[:, None, None]
        self.colour[:] = top * (1 - rows) + low * rows
        self.label[:] = SKY
        # A skyline far behind everything closes the end of the street.
        x = 0.0
        while x < self.width:
            wide = self.rng.uniform(0.04, 0.14) * self.width
            kind = VEGETATION if self.rng.random() < 0.45 else BUILDING
            top_y = self.horizon - self.rng.uniform(0.02, 0.16) * self.height
            corners = [(x, top_y), (x + wide, top_y), (x + wide, self.horizon), (x, self.horizon)]
            self.fill(corners, kind, self.shade(kind), FAR * 0.6)
            x += wide

    def ground(self) -> None:
        top = int(np.clip(np.ceil(self.horizon), 0, self.height - 1))
        rows = np.arange(top, self.height) + 0.5
        depth = self.focal * self.camera_height / np.maximum(rows - self.horizon, 0.25)
        depth = np.minimum(depth, FAR * 0.9).astype(np.float32)

        def strip(left: float, right: float, label: int, colour: np.ndarray) -> None:
            corners = [self.project(x, 0, z) for x, z in
                       ((left, FAR), (right, FAR), (right, 1.2), (left, 1.2))]  # fmt: skip
            self.fill(corners, label, colour, None)

        for side in (-1, 1):
            outer = TERRAIN if self.verge[side] else SIDEWALK
            strip(side * self.kerb, side * 60, outer, self.shade(outer))
            strip(side * self.road, side * self.kerb, SIDEWALK, self.shade(SIDEWALK))
            edge = self.base[SIDEWALK] * 0.8
            strip(side * self.road, side * (self.road + 0.2), SIDEWALK, edge)
        strip(-self.road, self.road, ROAD, self.shade(ROAD))
        paint = np.clip(self.base[ROAD] + self.rng.uniform(40, 100), 0, 255)
        for z in np.arange(4, 60, 6) + self.rng.uniform(0, 3):
            corners = [self.project(x, 0, d) for x, d in
                       ((-0.12, z + 3), (0.12, z + 3), (0.12, z), (-0.12, z))]  # fmt: skip
            self.fill(corners, None, paint, None)
        grounded = np.isin(self.label[top:], (ROAD, SIDEWALK, TERRAIN))
        self.depth[top:] = np.where(grounded, depth[:, None], self.depth[top:])

    def frontage(self, side: int) -> list:
        """What stands along one side: buildings or greenery, walls and fences before them."""
        things = []
        z = self.rng.uniform(2.5, 6)
        while z < 90:
            end = z + self.rng.uniform(6, 22)
            x = side * (self.kerb + self.verge[side] + self.rng.uniform(0, 1.5))
            if self.chance("green"):
                things.append(self.greenery(x, z, end))
            else:
                things.append(self.building(x, z, end))
            for name, label, tall in (("wall", WALL, (1.4, 2.6)), ("fence", FENCE, (1.0, 2.0))):
                if self.chance(name):
                    near = side * (self.kerb + self.rng.uniform(0, 0.8) * self.verge[side])
                    things.append(self.barrier(near, z, end, label, self.rng.uniform(*tall)))
            z = end + (self.rng.uniform(1, 6) if self.rng.random() < 0.4 else 0)
        return things

    def building(self, x: float, z: float, end: float) -> tuple:
        height, colour = self.rng.uniform(5, 18), self.shade(BUILDING)
        floors = np.arange(1.2, height - 1, self.rng.uniform(2.6, 3.6))
        glass = colour * self.rng.uniform(0.45, 0.8)
        front = colour * self.rng.uniform(0.8, 1.05)

        def draw() -> None:
            across = x + np.sign(x) * 12  # the face towards the camera
            corners = [self.project(x, height, z), self.project(across, height, z),
                       self.project(across, 0, z), self.project(x, 0, z)]  # fmt: skip
            self.fill(corners, BUILDING, front, z)
            self.facade(x, (z, end), (0, height), BUILDING, colour)
            for floor in floors:
                for start in np.arange(z + 0.8, end - 1.2, 2.6):
                    self.facade(x, (start, start + 1.3), (floor, floor + 1.5), None, glass)

        return (z + end) / 2, draw

    def greenery(self, x: float, z: float, end: float) -> tuple:
        colour, height = self.shade(VEGETATION), self.rng.uniform(2, 7)
        bumps = [(self.rng.uniform(z, end), self.rng.uniform(0.7, 1.1)) for _ in range(6)]

        def draw() -> None:
            self.facade(x, (z, end), (0, 0.75 * height), VEGETATION, colour * 0.9)
            for where, size in sorted(bumps, reverse=True):
                centre = self.project(x, 0.65 * height, where)
                radius = self.focal * 0.4 * height * size / where
                self.ellipse(centre, (radius, 0.8 * radius), VEGETATION, colour * size, where)

        return (z + end) / 2, draw

    def barrier(self, x: float, z: float, end: float, label: int, height: float) -> tuple:
        colour = self.shade(label)

        def draw() -> None:
            self.facade(x, (z, end), (0, height), label, colour)
            if label == FENCE:  # bars; a wall is plain with a coping
                for start in np.arange(z, end, 0.7):
                    self.facade(x, (start, start + 0.3), (0.1, 0.9 * height), None, colour * 0.6)
            else:
                self.facade(x, (z, end), (0.9 * height, height), None, colour * 1.15)

        return (z + end) / 2 - 1, draw

    def somewhere(self, near: float, far: float) -> float:
        """A depth, denser near the camera as seen in street photographs."""
        return log_uniform(self.rng, near, far)

    def traffic(self) -> list:
        things = []
        for _ in range(self.count("car")):
            things.append(self.car(self.lane(), self.somewhere(6.0, 32)))
        for _ in range(self.count("truck")):
            things.append(self.truck(self.lane(), self.somewhere(8, 28)))
        for _ in range(self.count("bus")):
            things.append(self.bus(self.lane(), self.somewhere(8, 28)))
        for _ in range(self.count("train")):
            things.append(self.train(self.rng.choice((-1, 1)), self.somewhere(8, 20)))
        return things

    def lane(self) -> float:
        """Lateral position on the road; often parked at the kerb."""
        side = self.rng.choice((-1, 1))
        if self.rng.random() < 0.5:
            return side * (self.road - self.rng.uniform(0.9, 1.4))
        return side * self.rng.uniform(0.8, self.road - 1.5)

    def body_colour(self) -> np.ndarray:
        """Cars come in all colours, so colour alone never tells them apart."""
        if self.rng.random() < 0.6:
            return np.full(3, self.rng.uniform(25, 225)) + self.rng.normal(0, 6, 3)
        hsv = np.array([[[self.rng.integers(180), self.rng.integers(90, 220),
                          self.rng.integers(60, 220)]]], np.uint8)  # fmt: skip
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float64)

    def wheels(self, x: float, z: float, width: float, radius: float) -> None:
        for wheel in (x - 0.36 * width, x + 0.36 * width):
            self.board(wheel, z, (0, 2 * radius), 2 * radius, None, np.array([22.0, 22, 24]))

    def car(self, x: float, z: float) -> tuple:
        colour = np.clip(self.body_colour(), 8, 245)
        width = (
            self.rng.uniform(1.7, 2.0) if self.rng.random() < 0.6 else self.rng.uniform(3.4, 4.4)
        )
        tall = self.rng.uniform(1.35, 1.7)
        glass = np.clip(colour * 0.3 + 20, 0, 255)
        lamps = np.array([190.0, 60, 50]) if x > 0 else np.array([230.0, 225, 200])

        def draw() -> None:
            self.board(x, z, (0.0, 0.12 * tall), 0.95 * width, CAR, np.array([20.0, 20, 22]))
            self.board(x, z, (0.12, 0.6 * tall), width, CAR, colour)
            self.board(x, z, (0.6 * tall, tall), 0.72 * width, CAR, colour * 0.9)
            self.board(x, z, (0.62 * tall, 0.93 * tall), 0.62 * width, None, glass)
            self.wheels(x, z, width, 0.24)
            for lamp in (x - 0.42 * width, x + 0.42 * width):
                self.board(lamp, z, (0.4 * tall, 0.52 * tall), 0.12 * width, None, lamps)
            if self.style.plates and z < 9:
                plate = np.array([225.0, 225, 215])
                self.board(x, z, (0.2 * tall, 0.32 * tall), 0.5, PLATE, plate)

        return z, draw

    def truck(self, x: float, z: float) -> tuple:
        cargo, cab = self.shade(TRUCK), np.clip(self.body_colour(), 8, 245)
        tall = self.rng.uniform(2.8, 3.6)
        width = self.rng.uniform(2.4, 3.0) if self.rng.random() < 0.5 else self.rng.uniform(5, 7)
        side = self.rng.choice((-1, 1))

        def draw() -> None:
            self.board(x, z, (0.0, 0.5), 0.95 * width, TRUCK, np.array([28.0, 28, 30]))
            self.board(x, z, (0.5, tall), width, TRUCK, cargo)
            self.board(x + side * 0.4 * width, z, (0.4, 0.7 * tall), 0.25 * width, TRUCK, cab)
            self.board(x, z, (0.5, 0.62), width, None, cargo * 0.6)
            self.wheels(x, z, width, 0.45)

        return z, draw

    def bus(self, x: float, z: float) -> tuple:
        colour, tall = self.shade(BUS), self.rng.uniform(2.9, 3.4)
        width = self.rng.uniform(2.5, 2.8) if self.rng.random() < 0.5 else self.rng.uniform(7, 11)
        glass = np.clip(colour * 0.25 + 15, 0, 255)

        def draw() -> None:
            self.board(x, z, (0.15, tall), width, BUS, colour)
            self.board(x, z, (0.48 * tall, 0.82 * tall), 0.92 * width, None, glass)
            for post in np.arange(-0.4, 0.41, 0.2):
                self.board(x + post * width, z, (0.48 * tall, 0.82 * tall), 0.12, None, colour)
            self.wheels(x, z, width, 0.42)

        return z, draw

    def train(self, side: int, z: float) -> tuple:
        colour, x = self.shade(TRAIN), side * (self.road + 0.6)
        glass = np.clip(colour * 0.3, 0, 255)
        end = z + self.rng.uniform(18, 34)

        def draw() -> None:
            self.facade(x, (z, end), (0.2, 3.6), TRAIN, colour)
            self.board(x + side * 1.3, z, (0.2, 3.6), 2.6, TRAIN, colour * 0.85)
            self.facade(x, (z, end), (1.7, 2.8), None, glass)
            self.facade(x, (z, end), (0.8, 1.1), None, np.clip(colour * 1.5, 0, 255))
            self.board(x + side * 1.3, z, (1.7, 2.9), 2.1, None, glass)

        return z + 1, draw

    def street_life(self) -> list:
        rng, things = self.rng, []

        def pavement(margin: float = 0.3) -> float:
            return float(rng.choice((-1, 1)) * rng.uniform(self.road + margin, self.kerb))

        for _ in range(self.count("tree")):
            things.append(self.tree(pavement(0.8), self.somewhere(7, 40)))
        for _ in range(self.count("pole")):
            things.append(self.pole(pavement(), self.somewhere(5.5, 22)))
        for _ in range(self.count("person")):
            x = pavement() if rng.random() < 0.85 else rng.uniform(-self.road, self.road)
            things.append(self.person(x, self.somewhere(5, 17)))
        for _ in range(self.count("cycle")):
            ridden = rng.random() < 0.6
            x = rng.uniform(-self.road, self.road) if ridden else pavement()
            things.append(self.two_wheeler(x, self.somewhere(5, 15), BICYCLE, ridden))
        for _ in range(self.count("motorcycle")):
            ridden = rng.random() < 0.6
            x = rng.uniform(-self.road, self.road) if ridden else pavement()
            things.append(self.two_wheeler(x, self.somewhere(5, 15), MOTORCYCLE, ridden))
        return things

    def tree(self, x: float, z: float) -> tuple:
        colour, height = self.shade(VEGETATION), self.rng.uniform(3.5, 8)
        lobes = [(self.rng.uniform(-0.25, 0.25), self.rng.uniform(0.55, 0.95),
                  self.rng.uniform(0.16, 0.3), self.rng.uniform(0.75, 1.2)) for _ in range(6)]  # fmt: skip
        trunk = np.array([70.0, 56, 44]) * self.rng.uniform(0.7, 1.2)

        def draw() -> None:
            self.board(x, z, (0, 0.6 * height), 0.25, VEGETATION, trunk)
            for dx, dy, radius, light in lobes:
                centre = self.project(x + dx * height, dy * height, z)
                size = self.focal * radius * height / z
                shade = np.clip(colour * light, 0, 255)
                self.ellipse(centre, (size, 0.85 * size), VEGETATION, shade, z)

        return z, draw

    def pole(self, x: float, z: float) -> tuple:
        rng, colour, tall = self.rng, self.shade(POLE), self.rng.uniform(2.8, 6.5)
        kind = rng.choice(("bare", "sign", "light"), p=(0.34, 0.38, 0.28))
        plate, box = self.shade(SIGN), self.shade(LIGHT, 0.8)
        plate_size = rng.uniform(0.9, 1.5)
        lamp = np.array([(230.0, 50, 40), (60, 220, 110), (240, 180, 50)][rng.integers(3)])

        def draw() -> None:
            self.board(x, z, (0, tall), 0.3, POLE, colour)
            if kind == "sign":
                self.board(x, z - 0.05, (tall - plate_size, tall), plate_size, SIGN, plate)
                rim = np.clip(plate * 1.3 + 20, 0, 255)
                self.board(x, z, (tall - 0.7 * plate_size, tall - 0.3 * plate_size),
                           0.5 * plate_size, None, rim)  # fmt: skip
            elif kind == "light":
                self.board(x, z - 0.05, (tall - 1.6, tall), 0.8, LIGHT, box)
                at = tall - 0.3 - 0.35 * (int(lamp[0]) % 3)
                self.board(x, z, (at - 0.2, at + 0.1), 0.3, None, lamp)

        return z, draw

    def figure(self, x: float, z: float, foot: float, height: float, label: int) -> None:
        clothes = self.shade(label)
        skin = np.array([196.0, 150, 122]) * self.rng.uniform(0.5, 1.1)
        trousers = clothes * self.rng.uniform(0.35, 0.8)
        self.board(x, z, (foot, foot + 0.48 * height), 0.38, label, trousers)
        self.board(x, z, (foot + 0.45 * height, foot + 0.84 * height), 0.52, label, clothes)
        centre = self.project(x, foot + 0.91 * height, z)
        size = self.focal * 0.14 / z
        self.ellipse(centre, (size, 1.2 * size), label, np.clip(skin, 0, 255), z)

    def person(self, x: float, z: float) -> tuple:
        height = self.rng.uniform(1.5, 1.9)
        return z, lambda: self.figure(x, z, 0, height, PERSON)

    def two_wheeler(self, x: float, z: float, label: int, ridden: bool) -> tuple:
        colour = self.shade(label)
        length = self.rng.uniform(1.5, 2.1) if self.rng.random() < 0.7 else 0.6
        bulk = 0.42 if label == MOTORCYCLE else 0.2

        def draw() -> None:
            for wheel in (x - 0.36 * length, x + 0.36 * length):
                centre = self.project(wheel, 0.34, z)
                radius = self.focal * 0.34 / z
                self.ellipse(centre, (radius * min(1, length), radius), label, colour * 0.5, z)
                if label == BICYCLE:
                    inner = (round(centre[0]), round(centre[1]))
                    hub = (self.base[ROAD] * 0.8).tolist()
                    cv2.circle(self.colour, inner, max(0, round(0.5 * radius)), hub, -1)
            self.board(x, z, (0.45 - bulk / 2, 0.62 + bulk), 0.75 * length, label, colour)
            if ridden:
                self.figure(x, z - 0.05, 0.55, 1.25, RIDER)

        return z, draw

    def bonnet(self) -> None:
        height = self.rng.uniform(0.03, 0.08) * self.height
        middle = (self.width // 2, self.height)
        axes = (int(0.46 * self.width), int(height))
        colour = self.shade(EGO)
        for layer, value in ((self.colour, colour.tolist()), (self.label, EGO), (self.depth, 1.0)):
            cv2.ellipse(layer, middle, axes, 0, 180, 360, value, -1)
