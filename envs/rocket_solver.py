"""Free flight of RocketRecovery's three bodies: a sequential-impulse solver of two hinges, for n rockets at once.

The scheme is that of Box2D 2.3, which the original steps with: impulses of motors, limits and hinges are applied one
after the other, 180 times per step, then positions are corrected, up to 60 times. Every quantity is a vector over the
rockets, so that all operations are elementwise; what does not change within a step is made once, effective masses are
inverted in doubles.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TIME_STEP = 1.0 / 50.0
GRAVITY = -10.0
VELOCITY_ITERATIONS, POSITION_ITERATIONS = 180, 60
MAX_ROTATION = math.pi / 2  # in a step
SCALE = 30.0
# The lander's centre of mass lies above its origin; a leg's is its origin.
LANDER_MASS, LANDER_INERTIA, LANDER_CENTRE = 4.8166667, 0.7838807, 0.1013072
LEG_MASS, LEG_INERTIA = 0.0711111, 0.00179095
ANCHOR = (20.0 / SCALE, 18.0 / SCALE)  # on a leg, x times the side; on the lander it is the origin
SIDES = (1.0, -1.0)  # of the legs, in the order in which their hinges are solved
REFERENCE = 0.05  # a leg's angle at the start, times the side
LIMITS = ((-0.9, -0.4), (0.4, 0.9))  # on the angle between leg and lander beyond the reference, per side
MOTOR_SPEED, MOTOR_IMPULSE = 0.3, 40.0 * TIME_STEP  # speed times the side; largest impulse in a step
POINT_SLOP, ANGLE_SLOP, MAX_CORRECTION = 0.005, math.radians(2.0), math.radians(8.0)

FREE, LOWER, UPPER = 0.0, 1.0, -1.0  # states of a limit: the sign of the impulses that it may give
X, Y, ANGLE, VX, VY, SPIN = range(6)  # of a body
POINT_X, POINT_Y, LIMIT, MOTOR, STATE = range(5)  # what a hinge keeps from step to step
_MA, _MB, _IA, _IB = 1 / LANDER_MASS, 1 / LEG_MASS, 1 / LANDER_INERTIA, 1 / LEG_INERTIA  # A: lander, B: leg


def advance(bodies: Tensor, hinges: Tensor, force_x: Tensor, force_y: Tensor) -> None:
    """Advance by one time step, in place.

    Args:
        bodies: [6, 3, n] float32; lander, leg of side +1, leg of side -1.
        hinges: [5, 2, n] float32; accumulated impulses and the state of the limit.
        force_x: [n] on the lander's centre.
        force_y: [n] on the lander's centre.
    """
    bodies[VY] += TIME_STEP * GRAVITY
    bodies[VX, 0] += force_x * (TIME_STEP * _MA)
    bodies[VY, 0] += force_y * (TIME_STEP * _MA)
    solvers = [_Hinge(bodies, hinges, side) for side in range(2)]
    for solver in solvers:
        solver.warm_start()
    for _ in range(VELOCITY_ITERATIONS):
        for solver in solvers:
            solver.turn()
            solver.hold()
    turned = bodies[SPIN] * TIME_STEP
    bodies[SPIN] *= (MAX_ROTATION / turned.abs().clamp(min=MAX_ROTATION)).clamp(max=1.0)
    bodies[:ANGLE + 1] += bodies[VX:] * TIME_STEP
    _correct_positions(bodies, hinges[STATE])


class _Hinge:
    """A hinge during the velocity iterations; impulses act on the leg and, reversed, on the lander."""

    def __init__(self, bodies: Tensor, hinges: Tensor, side: int) -> None:
        leg = side + 1
        self.ax, self.ay, self.aw = bodies[VX, 0], bodies[VY, 0], bodies[SPIN, 0]
        self.bx, self.by, self.bw = bodies[VX, leg], bodies[VY, leg], bodies[SPIN, leg]
        self.point_x, self.point_y, self.limit, self.motor, state = hinges[:, side].unbind()
        self.speed = MOTOR_SPEED * SIDES[side]
        angle = bodies[ANGLE, leg] - bodies[ANGLE, 0] - REFERENCE * SIDES[side]
        low, high = LIMITS[side]
        now = (angle <= low).to(angle.dtype) - ((angle >= high) & (angle > low)).to(angle.dtype)
        self.limit *= now == state
        state.copy_(now)
        self.sign, self.least = now, torch.where(now == FREE, math.inf, 0.0)  # a free hinge is below any impulse
        self.rax, self.ray, self.rbx, self.rby = arms(bodies[ANGLE, 0], bodies[ANGLE, leg], side)
        self.turn_ax, self.turn_ay = self.rax * _IA, self.ray * _IA
        self.turn_bx, self.turn_by = self.rbx * _IB, self.rby * _IB
        self._invert()

    def _invert(self) -> None:
        """Invert the effective masses of point and angle together, and of the point alone."""
        (k11, k12, k22), (rax, ray, rbx, rby) = point_masses(self.rax, self.ray, self.rbx, self.rby)
        k13, k23, k33 = -ray * _IA - rby * _IB, rax * _IA + rbx * _IB, _IA + _IB
        a, b, c = k22 * k33 - k23 * k23, k13 * k23 - k12 * k33, k12 * k23 - k13 * k22
        d, e, f = k11 * k33 - k13 * k13, k12 * k13 - k11 * k23, k11 * k22 - k12 * k12
        det = k11 * a + k12 * b + k13 * c
        self.f11, self.f12, self.f13, self.f22, self.f23, self.f33 = ((one / det).float() for one in (a, b, c, d, e, f))
        b11, b12, b22 = k22 / f, -k12 / f, k11 / f
        self.b11, self.b12, self.b22 = b11.float(), b12.float(), b22.float()
        # What an impulse of the limit that is taken back adds to the point's.
        self.b13, self.b23 = (b11 * k13 + b12 * k23).float(), (b12 * k13 + b22 * k23).float()

    def warm_start(self) -> None:
        """Apply what was accumulated in the last step."""
        self._apply(-self.point_x, -self.point_y, -(self.limit + self.motor))

    def turn(self) -> None:
        """Apply the motor's impulse."""
        wanted = (self.bw - self.aw).sub_(self.speed).mul_(-1.0 / (_IA + _IB)).add_(self.motor)
        wanted.clamp_(-MOTOR_IMPULSE, MOTOR_IMPULSE)
        change = wanted - self.motor
        self.motor.copy_(wanted)
        self.aw.sub_(change, alpha=_IA)
        self.bw.add_(change, alpha=_IB)

    def hold(self) -> None:
        """Apply the impulses of the limit and of the point; x, y, z are their negatives."""
        px = (self.bx - self.ax).addcmul_(self.bw, self.rby, value=-1.0).addcmul_(self.aw, self.ray)
        py = (self.by - self.ay).addcmul_(self.bw, self.rbx).addcmul_(self.aw, self.rax, value=-1.0)
        spin = self.bw - self.aw
        z = (self.f13 * px).addcmul_(self.f23, py).addcmul_(self.f33, spin)
        alone = (self.limit - z).mul_(self.sign) < self.least
        x = (self.f11 * px).addcmul_(self.f12, py).addcmul_(self.f13, spin)
        y = (self.f12 * px).addcmul_(self.f22, py).addcmul_(self.f23, spin)
        x_alone = (self.b11 * px).addcmul_(self.b12, py).addcmul_(self.limit, self.b13, value=-1.0)
        y_alone = (self.b12 * px).addcmul_(self.b22, py).addcmul_(self.limit, self.b23, value=-1.0)
        x, y = torch.where(alone, x_alone, x), torch.where(alone, y_alone, y)
        z = torch.where(alone, self.limit, z)  # takes the limit's impulse back
        self.point_x.sub_(x)
        self.point_y.sub_(y)
        self.limit.sub_(z)
        self._apply(x, y, z)

    def _apply(self, x: Tensor, y: Tensor, z: Tensor) -> None:
        """Apply an impulse (-x, -y) at the point and an angular one of -z."""
        self.ax.add_(x, alpha=_MA)
        self.ay.add_(y, alpha=_MA)
        self.bx.sub_(x, alpha=_MB)
        self.by.sub_(y, alpha=_MB)
        self.aw.addcmul_(self.turn_ax, y).addcmul_(self.turn_ay, x, value=-1.0).add_(z, alpha=_IA)
        self.bw.addcmul_(self.turn_bx, y, value=-1.0).addcmul_(self.turn_by, x).sub_(z, alpha=_IB)


def arms(lander: Tensor, leg: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From the centres of lander and leg, at these angles, to the hinge: x and y of both."""
    cos, sin = leg.cos(), leg.sin()
    along, up = ANCHOR[0] * SIDES[side], ANCHOR[1]
    return lander.sin() * LANDER_CENTRE, lander.cos() * -LANDER_CENTRE, cos * along - sin * up, sin * along + cos * up


def point_masses(rax: Tensor, ray: Tensor, rbx: Tensor, rby: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the 2x2 matrix of a point (11, 12, 22) for these arms, and the arms, in doubles."""
    rax, ray, rbx, rby = rax.double(), ray.double(), rbx.double(), rby.double()
    k11 = ray * ray * _IA + rby * rby * _IB + (_MA + _MB)
    k12 = -rax * ray * _IA - rbx * rby * _IB
    k22 = rax * rax * _IA + rbx * rbx * _IB + (_MA + _MB)
    return (k11, k12, k22), (rax, ray, rbx, rby)


def _correct_positions(bodies: Tensor, states: Tensor) -> None:
    """Move and turn bodies until hinges and limits are nearly met; a rocket that is done is left alone."""
    busy = torch.ones_like(states[0], dtype=torch.bool)
    for _ in range(POSITION_ITERATIONS):
        moved = bodies[: ANGLE + 1].clone()
        errors = [_correct_hinge(moved, states[side], side) for side in range(2)]
        bodies[: ANGLE + 1] = torch.where(busy, moved, bodies[: ANGLE + 1])
        busy &= ~(errors[0] & errors[1])
        if not busy.any():
            break


def _correct_hinge(places: Tensor, state: Tensor, side: int) -> Tensor:
    """Correct one hinge in place; return where it was nearly met before."""
    leg = side + 1
    angle = places[ANGLE, leg] - places[ANGLE, 0] - REFERENCE * SIDES[side]
    low, high = LIMITS[side]
    beyond_low, beyond_high = angle - low, angle - high
    error = torch.where(state == LOWER, -beyond_low, torch.where(state == UPPER, beyond_high, 0.0))
    turn = torch.where(
        state == LOWER,
        (beyond_low + ANGLE_SLOP).clamp(-MAX_CORRECTION, 0.0),
        torch.where(state == UPPER, (beyond_high - ANGLE_SLOP).clamp(0.0, MAX_CORRECTION), 0.0),
    )
    places[ANGLE, 0] += turn * (_IA / (_IA + _IB))
    places[ANGLE, leg] -= turn * (_IB / (_IA + _IB))
    rax, ray, rbx, rby = arms(places[ANGLE, 0], places[ANGLE, leg], side)
    ex = places[X, leg] + rbx - places[X, 0] - rax
    ey = places[Y, leg] + rby - places[Y, 0] - ray
    (k11, k12, k22), _ = point_masses(rax, ray, rbx, rby)
    det = k11 * k22 - k12 * k12
    jx, jy = ((k12 * ey - k22 * ex) / det).float(), ((k12 * ex - k11 * ey) / det).float()
    places[X, 0] -= jx * _MA
    places[Y, 0] -= jy * _MA
    places[ANGLE, 0] -= (rax * jy - ray * jx) * _IA
    places[X, leg] += jx * _MB
    places[Y, leg] += jy * _MB
    places[ANGLE, leg] += (rbx * jy - rby * jx) * _IB
    return ((ex * ex + ey * ey).sqrt() <= POINT_SLOP) & (error <= ANGLE_SLOP)
