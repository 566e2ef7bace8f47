"""A Q-learner: replay buffer, epsilon that falls, target network, no training until the buffer holds enough."""

import random
from collections import deque, namedtuple

import torch
from torch import nn

Transition = namedtuple("Transition", "state action reward following")
torch.manual_seed(0)
policy, target = nn.Linear(3, 2), nn.Linear(3, 2)
target.load_state_dict(policy.state_dict())
optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
memory = deque(maxlen=30)
epsilon = 1.0
steps = 0


def act(state):
    if random.random() < epsilon:
        return random.randrange(2)
    with torch.no_grad():
        return policy(state).argmax().item()


def optimize():
    batch = Transition(*zip(*random.sample(memory, 8)))
    q = policy(torch.stack(batch.state)).gather(1, torch.tensor(batch.action).unsqueeze(1)).squeeze(1)
    with torch.no_grad():
        goal = torch.tensor(batch.reward) + 0.9 * target(torch.stack(batch.following)).amax(1)
    loss = nn.functional.smooth_l1_loss(q, goal)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


state = torch.randn(3)
for _ in range(10):  # fill the buffer
    memory.append(Transition(state, random.randrange(2), random.random(), torch.randn(3)))
while steps < 15:
    action = act(state)
    following = torch.randn(3)
    memory.append(Transition(state, action, float(action == (state.sum() > 0)), following))
    state = following
    optimize()
    steps += 1
    epsilon = max(0.05, epsilon * 0.95)
    if steps % 5 == 0:
        target.load_state_dict(policy.state_dict())
