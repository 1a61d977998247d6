"""Backbones that several papers share: ResNet, HRNet, MobileNetV2 and Xception."""
