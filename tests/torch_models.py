"""torchvision's networks as torch modules: the same names, order and functions, written anew."""

import pytest

torch = pytest.importorskip('torch')
nn = torch.nn


def conv_norm(inputs, outputs, kernel, stride=1, bias=False, groups=1):
  padding = (kernel - 1) // 2
  conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias)
  return [conv, nn.BatchNorm2d(outputs)]


class Basic(nn.Module):
  expansion = 1

  def __init__(self, inputs, width, stride):
    super().__init__()
    self.conv1, self.bn1 = conv_norm(inputs, width, 3, stride)
    self.conv2, self.bn2 = conv_norm(width, width, 3)
    self.downsample = shortcut(inputs, width, stride)

  def forward(self, x):
    y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
    return torch.relu(y + (self.downsample(x) if self.downsample else x))


class Bottleneck(nn.Module):
  expansion = 4

  def __init__(self, inputs, width, stride):
    super().__init__()
    self.conv1, self.bn1 = conv_norm(inputs, width, 1)
    self.conv2, self.bn2 = conv_norm(width, width, 3, stride)
    self.conv3, self.bn3 = conv_norm(width, 4 * width, 1)
    self.downsample = shortcut(inputs, 4 * width, stride)

  def forward(self, x):
    y = torch.relu(self.bn1(self.conv1(x)))
    y = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(y)))))
    return torch.relu(y + (self.downsample(x) if self.downsample else x))


def shortcut(inputs, outputs, stride):
  if stride == 1 and inputs == outputs:
    return None
  return nn.Sequential(*conv_norm(inputs, outputs, 1, stride))


class ResNet(nn.Module):
  def __init__(self, block, blocks, classes, width=64):
    super().__init__()
    self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
    self.maxpool = nn.MaxPool2d(3, 2, 1)
    inputs = width
    for i, n in enumerate(blocks):
      layers = []
      for j in range(n):
        layers.append(block(inputs, width << i, 2 if i and not j else 1))
        inputs = (width << i) * block.expansion
      setattr(self, f'layer{i + 1}', nn.Sequential(*layers))
    self.stages = len(blocks)
    self.fc = nn.Linear(inputs, classes)

  def forward(self, x):
    x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
    for i in range(self.stages):
      x = getattr(self, f'layer{i + 1}')(x)
    return self.fc(x.mean((2, 3)))


class VGG(nn.Module):
  """The features of vgg*_bn without the last pooling; a mean and one linear layer, as for CIFAR."""

  def __init__(self, stages, classes, width=64):
    super().__init__()
    layers, inputs = [], 3
    for i, n in enumerate(stages):
      layers += [nn.MaxPool2d(2)] * (i > 0)
      outputs = width * min(1 << i, 8)
      for _ in range(n):
        layers += [*conv_norm(inputs, outputs, 3, bias=True), nn.ReLU()]
        inputs = outputs
    self.features = nn.Sequential(*layers)
    self.classifier = nn.Linear(inputs, classes)

  def forward(self, x):
    return self.classifier(self.features(x).mean((2, 3)))


def conv_norm_relu6(*args, **kwargs):
  return nn.Sequential(*conv_norm(*args, **kwargs), nn.ReLU6())


class InvertedResidual(nn.Module):
  def __init__(self, inputs, outputs, stride, expansion):
    super().__init__()
    hidden = inputs * expansion
    expand = [conv_norm_relu6(inputs, hidden, 1)] if expansion > 1 else []
    depthwise = conv_norm_relu6(hidden, hidden, 3, stride, groups=hidden)
    self.conv = nn.Sequential(*expand, depthwise, *conv_norm(hidden, outputs, 1))
    self.residual = stride == 1 and inputs == outputs

  def forward(self, x):
    return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
  def __init__(self, classes):
    super().__init__()
    layers, inputs = [conv_norm_relu6(3, 32, 3, 2)], 32
    for expansion, outputs, n, stride in (
      (1, 16, 1, 1),
      (6, 24, 2, 2),
      (6, 32, 3, 2),
      (6, 64, 4, 2),
      (6, 96, 3, 1),
      (6, 160, 3, 2),
      (6, 320, 1, 1),
    ):
      for i in range(n):
        layers.append(InvertedResidual(inputs, outputs, 1 if i else stride, expansion))
        inputs = outputs
    layers.append(conv_norm_relu6(inputs, 1280, 1))
    self.features = nn.Sequential(*layers)
    self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

  def forward(self, x):
    return self.classifier(self.features(x).mean((2, 3)))


MODELS = {
  'resnet18': lambda: ResNet(Basic, (2, 2, 2, 2), 1000),
  'resnet34': lambda: ResNet(Basic, (3, 4, 6, 3), 1000),
  'resnet50': lambda: ResNet(Bottleneck, (3, 4, 6, 3), 1000),
  'mobilenet_v2': lambda: MobileNetV2(1000),
  'vgg11': lambda: VGG((1, 1, 2, 2, 2), 10),
  'vgg16': lambda: VGG((2, 2, 3, 3, 3), 10),
  'vgg19': lambda: VGG((2, 2, 4, 4, 4), 100),
}


def randomized(module):
  """In evaluation, with nothing special in its norms: no zeros, no ones."""
  torch.manual_seed(0)
  for layer in module.modules():
    if isinstance(layer, nn.BatchNorm2d):
      for centre, array in ((1, layer.weight), (0, layer.bias), (0, layer.running_mean)):
        nn.init.normal_(array, centre, 0.2)
      nn.init.uniform_(layer.running_var, 0.5, 1.5)
  return module.eval()
